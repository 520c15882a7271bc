"""What `remat` kept and what it makes again, by module."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Entry:
    """One saved tensor of a forward.

    Fields:
        name: the module that saved it.
        because: the rule by which it was kept.
        kept_bytes: bytes kept for it that nothing kept before: its own, or those of a recipe's sources.
        remade_bytes: bytes of it that are made again, if no other saved tensor is the same.
        passes: cost of making it again.
    """

    name: str
    because: str = ""
    kept_bytes: int = 0
    remade_bytes: int = 0
    passes: int = 0


@dataclass
class Saved:
    """The handle of `with remat() as saved:`; `print(saved)` gives the table.

    Fields:
        entries: one per saved tensor.
        notes: why the context stepped aside, where it did.
    """

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept_bytes(self) -> int:
        """Bytes that saved tensors keep alive, parameters not counted, each storage once."""
        return sum(entry.kept_bytes for entry in self.entries)

    @property
    def remade_bytes(self) -> int:
        """Bytes that are made again in the backward pass instead, each storage once."""
        return sum(entry.remade_bytes for entry in self.entries)

    @property
    def passes(self) -> int:
        """Passes over tensors that the recipes take, if each is run alone."""
        return sum(entry.passes for entry in self.entries)

    def because(self) -> dict[str, int]:
        """Bytes kept by each rule."""
        rules: dict[str, int] = {}
        for entry in self.entries:
            if entry.kept_bytes:
                rules[entry.because] = rules.get(entry.because, 0) + entry.kept_bytes
        return rules

    def by_module(self) -> dict[str, "Saved"]:
        """The entries of each module, in the order of the forward."""
        modules: dict[str, Saved] = {}
        for entry in self.entries:
            modules.setdefault(entry.name, Saved()).entries.append(entry)
        return modules

    def note(self, text: str) -> None:
        """Says once why the context stepped aside."""
        if text not in self.notes:
            self.notes.append(text)

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("module", "kept", "remade", "passes", "kept because")]
        rows += [each._row(name) for name, each in self.by_module().items() if each.kept_bytes or each.remade_bytes]
        rows.append(self._row("total"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _row(self, name: str) -> tuple[str, ...]:
        rules = ", ".join(f"{rule} {_size(count)}" for rule, count in self.because().items())
        return name, _size(self.kept_bytes), _size(self.remade_bytes), str(self.passes), rules


def _size(count: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"
