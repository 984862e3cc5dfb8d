"""A table of latencies for searches that are limited by milliseconds, measured on the node the job is sent to."""

from pathlib import Path
from typing import Literal

from tas_ray.cli import Latency, SpaceFlags, job
from tas_ray.latency import Measurement


def latency(
    *,
    space: str = "search_spaces.mobilenet_v2:mobilenet_v2",
    options: tuple[str, ...] = (),
    output: Path,
    classes: int | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    points: int = 5,
    device: Literal["auto", "cpu", "cuda"] = "cuda",
) -> Latency:
    """Layers and whole networks of a search space, timed; MetaPruning's setting is MobileNetV2 on a GPU, 32 images.

    Args:
        space: Import path of the search space.
        options: Arguments of that function as NAME=VALUE.
        output: The table, a CSV file; for a submitted job an absolute path that all nodes see.
        classes: Number of classes. Left out: the space's own.
        image_size: Height and width of an image in pixels. Left out: the space's own.
        batch_size: Images that pass at once.
        dtype: Type of weights and images.
        points: Candidates of each width that layers are measured at.
        device: What is measured.
    """
    return Latency(
        space=SpaceFlags(space=space, options=options),
        output=output,
        classes=classes,
        image_size=image_size,
        measurement=Measurement(batch_size=batch_size, dtype=dtype, points=points),
        device=device,
    )


if __name__ == "__main__":
    job(latency)
