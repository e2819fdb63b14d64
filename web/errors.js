// The sentence with which a node of this pack stopped, where one looks.
//
// The frontend's own message says only that a node threw an error, so the sentence is shown as a
// toast. On the node it stands as text; the classic renderer shows two lines of it, so the node is
// made higher there until the next run. Where the frontend lacks any of this, nothing happens.
const SECONDS = 30;
const LETTER = 6.5, LINE = 16, MARGIN = 54; // pixels of the classic renderer's text
const sizes = new Map(); // node -> its size before it was made higher

function frontend() {
  return window.comfyAPI?.app?.app;
}

// The node one sees: of a node in a subgraph, the box in the main graph.
function seen(id) {
  return frontend()?.rootGraph?.getNodeById?.(String(id).split(":")[0]);
}

function shorten() {
  for (const [node, size] of sizes) node.setSize?.(size);
  sizes.clear();
}

function makeRoom(node, sentence) {
  const text = node?.widgets?.find((widget) => widget.name === "$$node-text-preview");
  if (!text?.options?.getMinHeight || window.LiteGraph?.vueNodesMode) return;
  const usual = text.options.getMinHeight;
  const lines = Math.ceil(sentence.length / Math.floor((node.size[0] - MARGIN) / LETTER));
  const high = (lines + 1) * LINE + MARGIN / 2;
  text.options.getMinHeight = () => (sizes.has(node) ? high : usual());
  sizes.set(node, sizes.get(node) ?? [...node.size]);
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  node.setDirtyCanvas?.(true, true);
}

function stopped({ detail }) {
  if (detail?.exception_type !== "Unlearn") return;
  const node = seen(detail.node_id), sentence = detail.exception_message.trim();
  frontend()?.extensionManager?.toast?.add?.({
    severity: "error",
    summary: node?.title ?? detail.node_type,
    detail: sentence,
    life: SECONDS * 1000,
  });
  makeRoom(node, sentence);
}

const api = window.comfyAPI?.api?.api;
api?.addEventListener?.("execution_start", shorten);
api?.addEventListener?.("execution_error", stopped);
