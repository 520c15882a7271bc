"""Live bytes over one training step, as a record keeps them: few events, and few characters in a file."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer, field_validator

Course = tuple[tuple[int, int], ...]
"""(number of the event, live bytes from it on), wherever the bytes change; 0 before the first."""


class MemoryTimeline(BaseModel):
    """Live bytes over one training step; each block that is allocated or freed is one event.

    Of a long step some events are kept, each the highest of those that it stands for, so that the peak is exact.

    Fields:
        events: how many there were.
        forward_events: how many of them, the first ones, in forward.
        live_bytes: by category of `peak_by_category_bytes`; in files as text, `"1:4096 17:0"`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: int
    forward_events: int
    live_bytes: dict[str, Course]

    @property
    def peak_bytes(self) -> int:
        """The highest sum of all categories; less than the record's peak by what is `unattributed` there."""
        return max((sum(row.values()) for _, row in self.rows()), default=0)

    def rows(self) -> list[tuple[int, dict[str, int]]]:
        """Every kept event with the live bytes of every category from it on."""
        changes: dict[int, dict[str, int]] = {}
        for name, course in self.live_bytes.items():
            for event, nbytes in course:
                changes.setdefault(event, {})[name] = nbytes
        now = dict.fromkeys(self.live_bytes, 0)
        rows = []
        for event in sorted(changes):
            now |= changes[event]
            rows.append((event, dict(now)))
        return rows

    @field_validator("live_bytes", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: [pair.split(":") for pair in course.split()] if isinstance(course, str) else course
            for name, course in value.items()
        }

    @field_serializer("live_bytes", when_used="json")
    def _write_text(self, value: dict[str, Course]) -> dict[str, str]:
        return {name: " ".join(f"{event}:{nbytes}" for event, nbytes in course) for name, course in value.items()}
