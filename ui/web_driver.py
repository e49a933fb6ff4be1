"""The driver inside an app that is shown in a browser: Textual's own, which outlives its server otherwise."""

from __future__ import annotations

from textual.drivers import web_driver
from textual.messages import ExitApp

from ui.terminal import PasteParser


class Driver(web_driver.WebDriver):
    """Ends the app where its input ends, because then the server is gone, even one that was killed."""

    def run_input_thread(self) -> None:
        """Read until the app or the input ends."""
        vars(web_driver)["XTermParser"] = PasteParser  # the method makes its parser by this name
        super().run_input_thread()
        if not self.exit_event.is_set():
            self._app.post_message(ExitApp())
