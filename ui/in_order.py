"""Keys and letters in the order in which they were typed.

Textual lets a widget insert a letter at once, but runs a binding only after the key has bubbled up: what is typed
quickly, pasted or late over a slow line then gets another order. A widget for text runs its own bindings in their turn.
"""

from __future__ import annotations

from textual import events
from textual.widget import Widget


async def act_in_turn(widget: Widget, event: events.Key) -> None:
    """Run the widget's own binding of a key now; to be called by its handler of `events.Key`."""
    active = None if event.is_printable else widget.screen.active_bindings.get(event.key)
    if active is None or active.node is not widget or not active.enabled:
        return
    if await widget.app.run_action(active.binding.action, widget):
        event.stop()
        event.prevent_default()
