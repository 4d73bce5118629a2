// Runs the published client's RealtimeClient and prints what its handlers get, one JSON text a line.
// Arguments: the client's src/realtime.ts, the project's URL, the token, a name. Lines on standard
// input are sent to the channel room:1.

const [source, url, token, name] = Deno.args;
const { RealtimeClient } = await import(source);
const client = new RealtimeClient({ url, getToken: () => token });
const print = (what: string) => (message: unknown) =>
  console.log(JSON.stringify({ what, message }));

client.subscribe({ kind: 'postgres', table: 'log' }, print('log'));
client.subscribe({ kind: 'postgres', table: 'marks', events: ['INSERT'] }, print('mark'));
const room = client.subscribe(
  { kind: 'broadcast', channel: 'room:1', presence: true, state: { name } },
  print('room'),
);
room.send('hello', { name }); // queued: before the connection is open
const decoder = new TextDecoder();
for await (const part of Deno.stdin.readable) {
  for (const line of decoder.decode(part).split('\n')) {
    if (line === 'quit') Deno.exit(0);
    if (line) room.send('said', line);
  }
}
