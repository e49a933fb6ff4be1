// The token leaves the address bar: it must not stay in the history, nor in a screenshot.
history.replaceState(null, "", "/");

// Keys go to the terminal without a click, from the moment at which it can send them on.
addEventListener("load", () => {
  const observer = new MutationObserver(() => {
    if (document.body.classList.contains("-first-byte")) {
      observer.disconnect();
      document.querySelector(".xterm-helper-textarea").focus();
    }
  });
  observer.observe(document.body, { attributeFilter: ["class"] });
});
