// The classic renderer draws text boxes without their names. This writes "forget" and "keep" above
// the boxes of Concepts to Forget, and of a subgraph's box that has both. Nodes 2.0 names them.
const NAMES = ["forget", "keep"];
const LETTERS = "bold 10px sans-serif";
const LEFT = 16, DOWN = 7; // pixels from where the widget begins; a box has a margin of 10

function draw(node, context) {
  const boxes = (node.widgets ?? []).filter(
    (widget) => NAMES.includes(widget.name) && (widget.element || widget.type === "customtext")
  );
  if (boxes.length < NAMES.length || node.flags?.collapsed) return;
  context.save();
  context.font = LETTERS;
  context.fillStyle = window.LiteGraph?.WIDGET_SECONDARY_TEXT_COLOR ?? "#999";
  for (const box of boxes) {
    const label = (box.label ?? box.name).toUpperCase();
    context.fillText(label, LEFT, box.y + DOWN);
  }
  context.restore();
}

window.comfyAPI?.app?.app?.registerExtension?.({
  name: "unlearn.names",
  nodeCreated(node) {
    if (node.comfyClass !== "UnlearnConcepts" && !node.isSubgraphNode?.()) return;
    const before = node.onDrawForeground;
    node.onDrawForeground = function (context, ...more) {
      before?.call(this, context, ...more);
      draw(this, context);
    };
  },
});
