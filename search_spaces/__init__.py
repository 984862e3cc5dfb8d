"""Networks written once against the layer factory, each as a search space for every method."""
