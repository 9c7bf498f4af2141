// Tabs as ARIA describes them: one of them is a tab stop, and the arrow keys move between them.

/** Calls `onChoose(tab)` for a tab that is clicked or moved to. Returns a function that marks a tab as the chosen one. */
export function tabList(root, onChoose) {
  const tabs = [...root.querySelectorAll('[role="tab"]')];
  root.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) onChoose(tab);
  });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || tabs.some((tab) => tab.disabled)) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    onChoose(next);
    next.focus();
  });
  return (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
  };
}
