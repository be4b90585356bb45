"""Tools that really compute, search and read, behind an environment of text; tasks with hidden plans."""

from envs_jax.text.local_tools.environment import ANSWER, LocalTools, TextStep
from envs_jax.text.local_tools.tasks import SPLITS, generate_task, generate_tasks
from envs_jax.text.local_tools.tools import SCHEMAS
from envs_jax.text.local_tools.trajectory import Call, Task, Trajectory, Turn, summary_messages

__all__ = [
    "ANSWER",
    "SCHEMAS",
    "SPLITS",
    "Call",
    "LocalTools",
    "Task",
    "TextStep",
    "Trajectory",
    "Turn",
    "generate_task",
    "generate_tasks",
    "summary_messages",
]
