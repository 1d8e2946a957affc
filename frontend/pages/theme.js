// Light or dark: the system's choice, unless the reader made one. Runs before the page is drawn, so that nothing flashes.
(() => {
  const NAME = "sluice-theme";
  const root = document.documentElement;
  const chosen = localStorage.getItem(NAME);
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const dark = getComputedStyle(root).colorScheme === "dark" ||
        (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
      root.dataset.theme = dark ? "light" : "dark";
      localStorage.setItem(NAME, root.dataset.theme);
    });
  });
})();
