"""Many adapters of one frozen backbone in one process (the paper's "cloud-based service", section 1)."""

from s2a.multitask.tasks import MultiTask, Task

__all__ = ["MultiTask", "Task"]
