"""Keys and letters in the order in which they were typed.

Textual lets a widget insert a letter at once, but runs a binding only after the key has bubbled up: what is typed
quickly, pasted or late over a slow line then gets another order. A widget for text runs its own bindings in their turn.
"""

from __future__ import annotations

from textual import events, on
from textual.widget import Widget


class InOrder(Widget):
    """To be the first base of a widget for text."""

    @on(events.Key)
    async def _in_its_turn(self, event: events.Key) -> None:
        active = None if event.is_printable else self.screen.active_bindings.get(event.key)
        if active is None or active.node is not self or not active.enabled:
            return
        if await self.app.run_action(active.binding.action, self):
            event.stop()
            event.prevent_default()
