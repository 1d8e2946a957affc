"""What to look for in a page, as scripts that return what is wrong with it."""

NAMELESS = """
(() => {
  const name = (element) => {
    const names = (element.getAttribute("aria-labelledby") ?? "").split(" ");
    const by = names.map((id) => document.getElementById(id)?.textContent ?? "");
    const label = [...(element.labels ?? [])].map((one) => one.textContent);
    const inside = element.matches("button, a, summary") ? element.textContent : "";
    return [element.ariaLabel ?? "", ...by, ...label, inside].join("").trim();
  };
  const controls = "button, a, input, select, textarea, summary, progress, nav, section, [role=tablist], [role=log]";
  const wrong = [...document.querySelectorAll(controls)].filter((one) => one.checkVisibility() && !name(one))
    .map((one) => `no name: ${one.outerHTML.slice(0, 120)}`);
  if (!document.documentElement.lang || !document.title) wrong.push("language or title is missing");
  for (const image of document.querySelectorAll("img")) if (!image.hasAttribute("alt")) wrong.push(`no alt: ${image.src}`);
  if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
  if ([...document.querySelectorAll("h1")].filter((one) => one.checkVisibility()).length !== 1) wrong.push("not one h1");
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`id twice: ${id}`);
  for (const one of document.querySelectorAll("[aria-controls], [aria-describedby], [aria-labelledby]"))
    for (const attribute of ["aria-controls", "aria-describedby", "aria-labelledby"])
      for (const id of (one.getAttribute(attribute) ?? "").split(" ").filter(Boolean))
        if (!document.getElementById(id)) wrong.push(`${attribute} leads nowhere: ${id}`);
  for (const one of document.querySelectorAll("*"))
    for (const attribute of one.getAttributeNames())
      if (attribute.startsWith("on") || attribute === "style") wrong.push(`inline: ${one.outerHTML.slice(0, 80)}`);
  return wrong;
})()
"""
"""Controls without a name, ids that lead nowhere, handlers in the markup."""

STICKING_OUT = """
[...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 100)).slice(0, 5)
"""

CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const pixel = (...colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const linear = (one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("option, noscript, script, :disabled")) continue;
    const behind = [];
    for (let one = element; one; one = one.parentElement) behind.unshift(getComputedStyle(one).backgroundColor);
    const style = getComputedStyle(element);
    const [one, other] = [light(pixel(...behind)), light(pixel(...behind, style.color))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${ratio.toFixed(2)}: ${walker.currentNode.data.trim().slice(0, 40)}`);
  }
  return [...new Set(wrong)];
})()
"""
"""Text whose contrast is below what WCAG 2.1 asks for (1.4.3: 4.5, large text 3)."""
