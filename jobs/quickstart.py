"""The quickstart as a job: three budgets of a tiny network on handwritten digits, nothing to download."""

from tas_ray.cli import job, quickstart

if __name__ == "__main__":
    job(quickstart)
