// What ComfyUI's classic renderer lacks and Nodes 2.0 has: a divider between two pictures, and the
// picture and the text of an inner node on the face of its subgraph. And colours of links.
import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'

// Colours of the links that only this pack has: concepts, saliency, patches.
const LINKS = {
  UNLEARN_CONCEPTS: '#d9a441',
  UNLEARN_SALIENCY: '#4fb3bf',
  UNLEARN_PATCH: '#e0698f'
}

function colourLinks() {
  for (const [type, colour] of Object.entries(LINKS)) {
    const { LGraphCanvas } = globalThis
    if (LGraphCanvas?.link_type_colors) LGraphCanvas.link_type_colors[type] = colour
    const slots = app.canvas?.default_connection_color_byType
    if (slots) slots[type] = colour
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour)
  }
}

// A stock Compare Images node that a workflow of this pack marked with this property gets its
// divider in the classic renderer too. Other Compare Images nodes are left alone.
const MARK = 'unlearn_divider'
const KNOWN = 4 // pictures of earlier runs that a node holds
const LINE = 16 // pixels of a line of text on the face of a subgraph

function loaded(node, url) {
  const known = (node.unlearnPictures ??= new Map())
  if (!known.has(url)) {
    const image = new Image()
    image.onload = () => app.graph?.setDirtyCanvas(true)
    image.src = url
    known.set(url, image)
    if (known.size > KNOWN) known.delete(known.keys().next().value)
  }
  const image = known.get(url)
  return image.naturalWidth ? image : null
}

function drawPicture(ctx, image, box, from, to) {
  const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight)
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale]
  const left = box.x + (box.width - width) / 2
  ctx.save()
  ctx.beginPath()
  ctx.rect(from, box.y, to - from, box.height)
  ctx.clip()
  ctx.imageSmoothingEnabled = image.naturalWidth >= 256
  ctx.drawImage(image, left, box.y + (box.height - height) / 2, width, height)
  ctx.restore()
}

function drawDivider(ctx, node, width, y) {
  const box = { x: 8, y, width: width - 16, height: Math.max(40, node.size[1] - y - 8) }
  const value = node.widgets.find((w) => w.type === 'imagecompare')?.value
  const [before, after] = [value?.beforeImages?.[0], value?.afterImages?.[0]].map(
    (url) => (url ? loaded(node, url) : null)
  )
  ctx.fillStyle = '#1b1d20'
  ctx.fillRect(box.x, box.y, box.width, box.height)
  ctx.textAlign = 'center'
  if (!before || !after) {
    ctx.fillStyle = '#aaa'
    ctx.font = '14px sans-serif'
    ctx.fillText('Press Run. Then drag here.', box.x + box.width / 2, box.y + box.height / 2)
    return
  }
  const share = node.unlearnShare ?? 0.5
  const at = box.x + share * box.width
  drawPicture(ctx, after, box, at, box.x + box.width)
  drawPicture(ctx, before, box, box.x, at)
  ctx.fillStyle = '#fff'
  ctx.fillRect(at - 1, box.y, 2, box.height)
  ctx.beginPath()
  ctx.arc(at, box.y + box.height / 2, 10, 0, 2 * Math.PI)
  ctx.fill()
  label(ctx, 'before', box.x + 6, box.y + 18, 'left')
  label(ctx, 'after', box.x + box.width - 6, box.y + 18, 'right')
}

function label(ctx, text, x, y, align) {
  ctx.font = '13px sans-serif'
  ctx.textAlign = align
  ctx.fillStyle = '#000'
  ctx.fillText(text, x + 1, y + 1)
  ctx.fillStyle = '#fff'
  ctx.fillText(text, x, y)
}

function addDivider(node) {
  const widget = node.widgets?.find((w) => w.type === 'imagecompare')
  if (!widget || widget.unlearnDrawn || !node.properties?.[MARK]) return
  widget.unlearnDrawn = true
  // Only the classic renderer calls these two.
  widget.draw = (ctx, owner, width, y) => drawDivider(ctx, owner, width, y)
  const moved = node.onMouseMove
  node.onMouseMove = function (event, pos, canvas) {
    moved?.call(this, event, pos, canvas)
    const share = (pos[0] - 8) / Math.max(1, this.size[0] - 16)
    this.unlearnShare = Math.min(1, Math.max(0, share))
    this.setDirtyCanvas(true)
  }
  // A press on the picture moves the divider; elsewhere it moves the node.
  const pressed = node.onMouseDown
  node.onMouseDown = function (event, pos, canvas) {
    const handled = pressed?.call(this, event, pos, canvas)
    if (handled || pos[1] < (widget.last_y ?? 0)) return handled
    this.onMouseMove(event, pos, canvas)
    const pointer = canvas?.pointer
    if (pointer) {
      pointer.onDrag = (moving) => {
        const x = moving.canvasX - this.pos[0]
        this.onMouseMove(moving, [x, moving.canvasY - this.pos[1]], canvas)
      }
    }
    return true
  }
}

// The box in the main graph around a node with an id such as '12:3'; null for any other.
function boxOf(id) {
  const [outer, inner, deeper] = String(id ?? '').split(':')
  if (!inner || deeper) return null
  const host = app.rootGraph?.getNodeById(Number(outer)) ?? app.rootGraph?.getNodeById(outer)
  return host?.subgraph ? host : null
}

// What a node of this pack inside a subgraph says, on the face of the subgraph.
function showText({ detail }) {
  const host = boxOf(detail?.nodeId)
  const inner = String(detail?.nodeId).split(':')[1]
  const node = host?.subgraph.nodes.find((n) => String(n.id) === inner)
  if (node?.constructor.nodeData?.category !== 'unlearn') return
  host.unlearnText = detail.text
  layText(host)
  if (!host.unlearnFace) addFace(host)
  host.setDirtyCanvas(true, true)
}

// The same in Nodes 2.0, where a node is part of the page: a paragraph at the end of its body.
function layText(host) {
  const body = document.querySelector(`[data-testid="node-body-${host.id}"]`)
  let said = body?.querySelector(':scope > .unlearn-said')
  if (!host.unlearnText) return said?.remove()
  if (body && !said) {
    said = document.createElement('p')
    said.className = 'unlearn-said'
    said.style.cssText =
      'margin: 0 12px; flex: none; font-size: 12px; line-height: 1.3; white-space: pre-line; ' +
      'overflow: hidden; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4'
    body.append(said)
  }
  if (said) said.textContent = host.unlearnText
}

// The grid of an Erasure Report inside a subgraph, on the face of the subgraph.
function showReport({ detail }) {
  const host = boxOf(detail?.node)
  const inner = String(detail?.node).split(':')[1]
  const picture = detail?.output?.images?.[0]
  if (!picture || !host) return
  const node = host.subgraph.nodes.find((n) => String(n.id) === inner)
  if (node?.type !== 'ErasureReport') return
  host.unlearnResult = api.apiURL(`/view?${new URLSearchParams(picture)}`)
  if (!host.unlearnFace) addFace(host)
  host.setDirtyCanvas(true, true)
}

// Draws a text in lines that fit, at most four; returns their height.
function drawText(ctx, text, x, y, width) {
  ctx.save()
  ctx.font = '12px sans-serif'
  ctx.textAlign = 'left'
  ctx.fillStyle = '#ddd'
  const lines = []
  for (const line of String(text ?? '').split('\n')) {
    let drawn = ''
    for (const word of line.split(' ')) {
      const longer = drawn ? `${drawn} ${word}` : word
      if (drawn && ctx.measureText(longer).width > width) {
        lines.push(drawn)
        drawn = word
      } else drawn = longer
    }
    if (drawn) lines.push(drawn)
  }
  const shown = lines.slice(0, 4)
  shown.forEach((line, k) => ctx.fillText(line, x, y + LINE * (k + 1)))
  ctx.restore()
  return shown.length ? LINE * shown.length + 8 : 0
}

function addFace(host) {
  const classic = () => !globalThis.LiteGraph?.vueNodesMode
  // It takes part in the layout of the widgets and is no widget.
  const room = {
    name: 'result',
    y: 0,
    computedHeight: 0,
    computeLayoutSize: () => ({ minHeight: host.unlearnResult ? 200 : 4 * LINE, minWidth: 200 })
  }
  host.unlearnFace = room
  const widgets = host.getLayoutWidgets
  host.getLayoutWidgets = function () {
    const found = widgets.call(this)
    return classic() && !this.collapsed ? [...found, room] : found
  }
  const drawn = host.onDrawForeground
  host.onDrawForeground = function (ctx, ...more) {
    drawn?.call(this, ctx, ...more)
    if (this.collapsed || !classic()) return
    const [left, width] = [8, this.size[0] - 16]
    const top = room.y + drawText(ctx, this.unlearnText, left, room.y, width)
    const image = this.unlearnResult ? loaded(this, this.unlearnResult) : null
    if (!image) return
    const height = Math.max(40, this.size[1] - top - 8)
    drawPicture(ctx, image, { x: left, y: top, width, height }, left, left + width)
  }
}

app.registerExtension({
  name: 'Unlearn.Faces',
  setup() {
    colourLinks()
    api.addEventListener('executed', showReport)
    api.addEventListener('progress_text', showText)
  },
  // The frontend puts its own colours in after setup, and none for types that it does not know.
  afterConfigureGraph: colourLinks,
  loadedGraphNode: addDivider
})
