"""The only room that imports Ray: training on Ray Train, sweeps on Ray Tune, gauges on its metrics endpoint."""
