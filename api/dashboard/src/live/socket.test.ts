import { beforeEach, describe, expect, it, vi } from 'vitest';

import type { JobEvent } from './events';
import { type Line, LiveSocket } from './socket';

class FakeLine implements Line {
  onopen: Line['onopen'] = null;
  onmessage: Line['onmessage'] = null;
  onclose: Line['onclose'] = null;
  said: Record<string, unknown>[] = [];
  isClosed = false;
  readyState = 0;

  constructor(readonly token: string) {}

  send(message: string) {
    if (this.readyState !== 1) throw new Error('it is not open');
    this.said.push(JSON.parse(message) as Record<string, unknown>);
  }

  close() {
    this.isClosed = true;
  }

  tell(message: object) {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  ofType(type: string) {
    return this.said.filter((message) => message.type === type);
  }

  /** Take the handshake, and answer what was said. */
  open(endsAt: string | null = null) {
    this.readyState = 1;
    this.onopen?.();
    this.tell({ type: 'ack', request_id: 'auth', user_id: 'user_1', expires_at: endsAt });
  }

  accept(ended = false) {
    this.tell({ type: 'ack', request_id: this.ofType('subscribe').at(-1)?.request_id, job_id: 'job_1', ended });
  }

  event(id: string, text = id) {
    this.tell({ type: 'event', job_id: 'job_1', event: { id, at: 'now', type: 'text.delta', message_id: 'm', text } });
  }
}

/** A socket whose lines and clock are in the hands of the test. */
function stage() {
  const lines: FakeLine[] = [];
  const waits: { ms: number; act: () => void; isOff: boolean }[] = [];
  let tokens = 0;
  const replace = vi.fn(() => Promise.resolve(`token-${++tokens}`));
  const token = vi.fn(() => Promise.resolve(`token-${tokens}`));
  const socket = new LiveSocket({
    token,
    replace,
    open: (token) => {
      const line = new FakeLine(token);
      lines.push(line);
      return line;
    },
    random: () => 1,
    after: (ms, act) => {
      const wait = { ms, act, isOff: false };
      waits.push(wait);
      return () => {
        wait.isOff = true;
      };
    },
    now: () => 0,
  });
  const settle = async () => {
    for (let turn = 0; turn < 5; turn++) await Promise.resolve();
  };
  const line = async (n: number) => {
    await settle();
    const line = lines[n];
    if (line === undefined) throw new Error(`there are ${lines.length} lines`);
    return line;
  };
  const pass = () => {
    const wait = waits.filter((wait) => !wait.isOff).at(-1);
    if (wait === undefined) throw new Error('nothing is waited for');
    wait.isOff = true;
    wait.act();
    return wait.ms;
  };
  return { socket, lines, line, pass, waits, token, replace };
}

describe('the socket', () => {
  let on: ReturnType<typeof stage>;
  let heard: JobEvent[];
  const follow = () => on.socket.follow('job_1', { hear: (event) => heard.push(event), fail: vi.fn() });

  beforeEach(() => {
    on = stage();
    heard = [];
  });

  it('is opened for the first who listens and closed after the last', async () => {
    const unwatch = on.socket.watchSystem(vi.fn());
    const leave = follow();
    const line = await on.line(0);
    line.open();

    expect(on.socket.liveness()).toBe('live');
    unwatch();
    expect(line.isClosed).toBe(false);
    leave();
    expect([line.isClosed, on.socket.liveness(), on.lines.length]).toEqual([true, 'idle', 1]);
  });

  it('goes on after the last event that came', async () => {
    follow();
    const first = await on.line(0);
    first.open();
    first.accept();
    first.event('1-0');
    first.event('1-1');

    first.onclose?.({ code: 1006 });
    expect(on.socket.liveness()).toBe('reconnecting');
    on.pass();
    const second = await on.line(1);
    second.open();
    second.accept();
    second.event('1-2');

    expect(second.ofType('subscribe')).toMatchObject([{ job_id: 'job_1', after: '1-1' }]);
    expect(heard.map((event) => event.id)).toEqual(['1-0', '1-1', '1-2']);
    expect(on.socket.liveness()).toBe('live');
  });

  it('begins anew after a position that was no longer kept', async () => {
    follow();
    const first = await on.line(0);
    first.open();
    first.accept();
    first.event('1-0');
    first.tell({ type: 'event', job_id: 'job_1', event: { at: 'now', type: 'resync', job: {} } });

    first.onclose?.({ code: 1006 });
    on.pass();
    const second = await on.line(1);
    second.open();

    expect(second.ofType('subscribe')[0]).not.toHaveProperty('after');
  });

  it('does not ask again for a job that ended', async () => {
    follow();
    const first = await on.line(0);
    first.open();
    first.accept();
    first.tell({ type: 'event', job_id: 'job_1', event: { id: '1-5', at: 'now', type: 'job.completed', job: {} } });

    first.onclose?.({ code: 1006 });
    on.pass();
    const second = await on.line(1);
    second.open();

    expect(second.ofType('subscribe')).toEqual([]);
  });

  it('does not tell what an earlier subscription of the same job left behind', async () => {
    const leave = follow();
    const line = await on.line(0);
    line.open();
    line.accept();
    leave();
    // The line was closed with its last listener.
    follow();
    const next = await on.line(1);
    next.open();

    next.event('1-0', 'of before');
    next.accept();
    next.event('1-0', 'of now');

    expect(heard.map((event) => (event.type === 'text.delta' ? event.text : ''))).toEqual(['of now']);
  });

  it('waits longer each time, up to half a minute, and starts over once it is live', async () => {
    on.socket.watchSystem(vi.fn());
    const waited: number[] = [];
    for (let turn = 0; turn < 8; turn++) {
      (await on.line(turn)).onclose?.({ code: 1006 });
      waited.push(on.pass());
    }
    const line = await on.line(8);
    line.open();
    line.onclose?.({ code: 1006 });

    expect(waited).toEqual([500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    expect(on.pass()).toBe(500);
  });

  it('comes back at once to a server that is about to stop, and waits if that does it again', async () => {
    on.socket.watchSystem(vi.fn());
    const line = await on.line(0);
    line.open();

    line.onclose?.({ code: 1012 });
    const next = await on.line(1);
    next.onclose?.({ code: 1012 });

    await expect(on.line(2)).rejects.toThrow();
    on.pass();
    await on.line(2);
  });

  it('exchanges a token that was refused, once, and then waits', async () => {
    on.socket.watchSystem(vi.fn());
    (await on.line(0)).onclose?.({ code: 4401 });

    const second = await on.line(1);
    expect([second.token, on.replace.mock.calls]).toEqual(['token-1', [['token-0']]]);

    second.onclose?.({ code: 4401 });
    await expect(on.line(2)).rejects.toThrow();
    on.pass();
    expect((await on.line(2)).token).toBe('token-2');
  });

  it('shows the next token before the one it has ends', async () => {
    on.socket.watchSystem(vi.fn());
    const line = await on.line(0);
    line.open(new Date(15 * 60_000).toISOString());

    expect(on.pass()).toBe(14 * 60_000);
    await Promise.resolve();
    await Promise.resolve();

    expect(line.ofType('auth')).toHaveLength(2);
  });

  it('tells who follows a job that it cannot be followed', async () => {
    const fail = vi.fn();
    on.socket.watchSystem(vi.fn());
    on.socket.follow('job_1', { hear: vi.fn(), fail });
    const line = await on.line(0);
    line.open();
    const { request_id } = line.ofType('subscribe')[0] ?? {};

    line.tell({ type: 'error', request_id, code: 'not_found', detail: 'there is nothing here' });

    expect(fail).toHaveBeenCalledWith(expect.objectContaining({ code: 'not_found', retryAfterSecs: null }));
    expect(on.waits.every((wait) => wait.isOff)).toBe(true);
  });

  it('asks again to follow a job where that may pass, when it is told to or later each time', async () => {
    const fail = vi.fn();
    on.socket.follow('job_1', { hear: (event) => heard.push(event), fail });
    const line = await on.line(0);
    line.open();
    const refuse = (more: object) => line.tell({ type: 'error', request_id: line.ofType('subscribe').at(-1)?.request_id, ...more });

    refuse({ code: 'rate_limited', detail: 'too often', retry_after_secs: 7 });
    expect(on.pass()).toBe(7_000);
    refuse({ code: 'unavailable', detail: 'the database is away' });
    expect(on.pass()).toBe(1_000);
    line.accept();
    line.event('1-0');

    expect(line.ofType('subscribe')).toHaveLength(3);
    expect(heard).toHaveLength(1);
    expect(fail.mock.calls).toEqual([
      [expect.objectContaining({ code: 'rate_limited', retryAfterSecs: 7 })],
      [expect.objectContaining({ code: 'unavailable', retryAfterSecs: 1 })],
      [null],
    ]);
  });

  it('does not ask again for a job that nobody follows any more', async () => {
    on.socket.watchSystem(vi.fn());
    const leave = follow();
    const line = await on.line(0);
    line.open();
    line.tell({ type: 'error', request_id: line.ofType('subscribe')[0]?.request_id, code: 'unavailable', detail: 'later' });

    leave();

    expect(on.waits.every((wait) => wait.isOff)).toBe(true);
  });

  it('shows its token again where that could not be looked at', async () => {
    on.socket.watchSystem(vi.fn());
    const line = await on.line(0);
    line.readyState = 1;
    line.onopen?.();

    line.tell({ type: 'error', request_id: 'auth', code: 'unavailable', detail: 'the database is away' });
    expect(on.pass()).toBe(500);
    await on.line(0);
    expect(line.ofType('auth')).toHaveLength(2);
    line.tell({ type: 'ack', request_id: 'auth', expires_at: null });

    expect(on.socket.liveness()).toBe('live');
  });

  it('leaves a line on which its token is refused for one with another token', async () => {
    on.socket.watchSystem(vi.fn());
    const line = await on.line(0);
    line.open();

    line.tell({ type: 'error', request_id: 'auth', code: 'token_expired', detail: 'it is over' });

    expect((await on.line(1)).token).toBe('token-1');
    expect(line.isClosed).toBe(true);
  });

  it('has no news while the connection is lost, nor once they are for nobody but admins', async () => {
    const watcher = vi.fn();
    on.socket.watchSystem(watcher);
    const news = { type: 'system', queue: {}, workers: [] };
    const first = await on.line(0);
    first.open();
    first.tell(news);
    expect(on.socket.news()).toEqual(news);

    first.onclose?.({ code: 1006 });
    expect([on.socket.news(), watcher.mock.calls.length]).toEqual([null, 2]);

    on.pass();
    const second = await on.line(1);
    second.open();
    second.tell(news);
    second.tell({ type: 'error', code: 'admin_required', detail: 'for admins' });
    expect([on.socket.news(), watcher.mock.calls.length]).toEqual([null, 4]);
  });

  it('does not open a line that nobody wants any more once the token is there', async () => {
    follow()();
    follow();

    await on.line(0);
    expect(on.lines).toHaveLength(1);
  });

  it('says nothing on a line that is closing', async () => {
    const unwatch = on.socket.watchSystem(vi.fn());
    const leave = follow();
    const line = await on.line(0);
    line.open();
    line.readyState = 2;

    leave();
    unwatch();

    expect([line.ofType('unsubscribe'), line.ofType('unwatch')]).toEqual([[], []]);
  });

  it('comes back at once when the network does', async () => {
    on.socket.watchSystem(vi.fn());
    (await on.line(0)).onclose?.({ code: 1006 });

    on.socket.hurry();

    await on.line(1);
    expect(on.waits.every((wait) => wait.isOff)).toBe(true);
  });
});
