"""Whether a page can be read: JavaScript that a browser runs on it."""

# the lowest ratio between a text's brightness and that of what is behind it, over all that has text of its own
CONTRAST = """() => {
  const paper = Object.assign(document.createElement("i"), { style: "background: Canvas" });
  document.body.append(paper);
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    const found = numbers(getComputedStyle(node ?? paper).backgroundColor);
    return node && found[3] === 0 ? behind(node.parentElement) : found;
  };
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(x => linear(x / 255))
    .reduce((sum, x, n) => sum + x * [0.2126, 0.7152, 0.0722][n], 0);
  const texts = [...document.querySelectorAll("body *")].filter(node => node.checkVisibility() && !node.disabled
    && (node.value || [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())));
  const ratios = texts.map(node => {
    const pair = [light(numbers(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  });
  paper.remove();
  return [texts.length, Math.min(...ratios)];
}"""
