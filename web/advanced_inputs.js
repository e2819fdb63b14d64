// Hides advanced inputs in the classic renderer, as Nodes 2.0 does by itself.
//
// Classic knows widgets that are shown on demand, but reads no `advanced` out of a node's inputs.
// Hidden widgets keep their values and their places in saved workflows.
import { app } from "/scripts/app.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of the page
const TEXTS = {
  en: ["Show advanced inputs", "Hide advanced inputs"],
  zh: ["\u663e\u793a\u9ad8\u7ea7\u8f93\u5165", "\u9690\u85cf\u9ad8\u7ea7\u8f93\u5165"],
  ja: ["\u8a73\u7d30\u5165\u529b\u3092\u8868\u793a", "\u8a73\u7d30\u5165\u529b\u3092\u96a0\u3059"],
};

function setting(name) {
  return app.extensionManager?.setting?.get(name);
}

function isConnected(node, widget) {
  return node.inputs?.some((i) => i.widget?.name === widget.name && i.link != null) ?? false;
}

function isAdvanced(node, widget) {
  // What happens to a seed after a run is a widget of its own, which goes with the seed.
  const follows = (other) => other.options?.advanced && other.linkedWidgets?.includes(widget);
  return Boolean(widget.options?.advanced) || node.widgets.some(follows);
}

function isFolded(node, widget) {
  if (node.showAdvanced || !isAdvanced(node, widget) || setting(ALWAYS)) return false;
  return !isConnected(node, widget);
}

function label(node) {
  const texts = TEXTS[setting("Comfy.Locale")] ?? TEXTS.en;
  return texts[node.showAdvanced ? 1 : 0];
}

function addButton(node) {
  // Nodes 2.0 has a button of its own, and a button has no value to save.
  const options = { serialize: false, canvasOnly: true };
  const button = node.addWidget("button", "advanced_inputs", null, () => node.toggleAdvanced(), options);
  button.serialize = false;
  Object.defineProperty(button, "label", { get: () => label(node), set: () => {} });
}

app.registerExtension({
  name: "unlearn.advancedInputs",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.category !== "unlearn") return;
    const { isWidgetVisible, getLayoutWidgets, toggleAdvanced } = nodeType.prototype;
    if (!isWidgetVisible || !getLayoutWidgets || !toggleAdvanced) return; // another page: all inputs are shown
    nodeType.prototype.isWidgetVisible = function (widget) {
      return isWidgetVisible.call(this, widget) && !isFolded(this, widget);
    };
    nodeType.prototype.getLayoutWidgets = function () {
      return getLayoutWidgets.call(this).filter((widget) => !isFolded(this, widget));
    };
    nodeType.prototype.toggleAdvanced = function () {
      const before = this.computeSize()[1];
      toggleAdvanced.call(this);
      const less = before - this.computeSize()[1];
      if (less > 0) this.setSize([this.size[0], this.size[1] - less]);
    };
    nodeType.prototype.hasAdvancedWidgets = function () {
      return this.widgets?.some((widget) => widget.options?.advanced) ?? false;
    };
  },

  nodeCreated(node) {
    if (node.constructor.nodeData?.category !== "unlearn") return;
    if (!node.toggleAdvanced || !node.hasAdvancedWidgets?.()) return;
    addButton(node);
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
