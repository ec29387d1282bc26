// A peer of another stack for the load tool: @ethereumjs/devp2p with one protocol, `load/1`.
//
// It speaks the lines of tests/interop/geth-peer that the tool uses: says {"event":"ready","enode":…} and
// {"event":"peer-add"}, takes {"cmd":"pour","size":…,"seconds":…}, and says {"event":"poured",…} at the end. This stack
// judges a peer by its Pongs: it leaves when one is missing for 10 s.
//
// Left out: reading. Messages of the sidecar are dropped.

import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setImmediate } from 'node:timers/promises'
import { RLPx } from '@ethereumjs/devp2p'
import { compress } from 'snappyjs'

const FLOOD = 2
const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }))

let connected
class Load {
  constructor(_version, peer, send) {
    connected = { peer, send }
  }
  _handleMessage() {}
}

const rlpx = new RLPx(randomBytes(32), {
  capabilities: [{ name: 'load', version: 1, length: 8, constructor: Load }],
})
rlpx.events.on('error', (error) => say('error', { error: String(error) }))
rlpx.events.on('peer:error', (_, error) => say('error', { error: String(error) }))
rlpx.events.on('peer:added', () => say('peer-add'))
let left
rlpx.events.on('peer:removed', (_, reason, ours) => {
  left = `the connection ended: reason ${reason}, ${ours ? 'ours' : 'of the sidecar'}`
})

async function pour({ size, seconds }) {
  const { peer, send } = connected
  const socket = peer._socket
  const payload = compress(randomBytes(size))
  const end = Date.now() + seconds * 1000
  let sent = 0
  let longest = 0
  while (Date.now() < end && left === undefined && !socket.destroyed) {
    const began = Date.now()
    send(FLOOD, payload)
    if (socket.writableNeedDrain) {
      await Promise.race([once(socket, 'drain'), once(socket, 'close')]).catch(() => {})
    } else {
      await setImmediate()
    }
    longest = Math.max(longest, Date.now() - began)
    sent += 1
  }
  say('poured', { sent, longest_write_ms: longest, error: left })
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const command = JSON.parse(line)
  if (command.cmd === 'pour') pour(command)
})

rlpx.listen(0, '127.0.0.1')
rlpx.events.on('listening', () => {
  const { port } = rlpx._server.address()
  say('ready', { enode: `enode://${Buffer.from(rlpx.id).toString('hex')}@127.0.0.1:${port}` })
})
