"""What all teachers behind servers do alike."""

from __future__ import annotations

from typing import Any

from opd.protocols import Student


class Remote:
    """Answers of a model that stays as it is, from whoever of `replicas` is free."""

    live = False
    replicas: Any  # Replicas, of whatever kind

    def tell(self) -> dict[str, float]:
        """What asking has cost since this was last told."""
        return self.replicas.tell()

    def give_up(self) -> None:
        """What does not answer now is not asked again: somebody wants to stop."""
        self.replicas.hurried = True

    def follow(self, student: Student, step: int) -> None:
        """It stays as it is."""
