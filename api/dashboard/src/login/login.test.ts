// @vitest-environment jsdom
import { beforeEach, describe, expect, it, vi } from 'vitest';

import { Problem } from '../client/problem';
import { Login } from './login';

const KEPT = 'claude-api.refresh-token';

/** A server that gives out `access-n` with `refresh-n` and takes each refresh token once. */
class Server {
  given = 0;
  requests: { path: string; body: unknown; authorization: string | null }[] = [];
  answer: (() => Response | Promise<Response>) | null = null;

  readonly ask: typeof fetch = async (input, init) => {
    const body: unknown = typeof init?.body === 'string' ? JSON.parse(init.body) : null;
    // eslint-disable-next-line @typescript-eslint/no-base-to-string -- only texts are asked for
    this.requests.push({ path: String(input), body, authorization: new Headers(init?.headers).get('authorization') });
    const answer = this.answer ?? (() => this.next());
    // Answers come later than the next request can.
    await Promise.resolve();
    return answer();
  };

  next(): Response {
    const n = ++this.given;
    return Response.json({
      user: { id: 'user_1', email: 'admin@example.com', role: 'admin' },
      access_token: `access-${n}`,
      refresh_token: `refresh-${n}`,
      token_type: 'Bearer',
      expires_in: 900,
    });
  }

  /** Answer only once there is an answer. */
  hold(): (answer: Response) => void {
    let give: (answer: Response) => void = () => undefined;
    const held = new Promise<Response>((resolve) => {
      give = resolve;
    });
    this.answer = () => held;
    return give;
  }

  refuse(status: number, code: string) {
    this.answer = () => Response.json({ status, code, detail: code }, { status });
  }
}

/** Locks that are free or not: who would wait for one waited too long. */
class Locks {
  readonly held = new Set<string>();

  readonly request = ((name: string, _options: LockOptions, act: LockGrantedCallback<unknown>) => {
    if (this.held.has(name)) return Promise.reject(new DOMException('it took too long', 'TimeoutError'));
    this.held.add(name);
    return act(null);
  }) as LockManager['request'];
}

describe('a login', () => {
  let server: Server;
  let now: number;
  const begun = async () => {
    const login = new Login(sessionStorage, server.ask, () => now);
    await login.begin('admin@example.com', 'secret');
    return login;
  };

  beforeEach(() => {
    sessionStorage.clear();
    server = new Server();
    now = 0;
  });

  it('keeps only the refresh token in the storage of the tab', async () => {
    const login = await begun();

    expect(await login.token()).toBe('access-1');
    expect(Object.entries(sessionStorage)).toEqual([[KEPT, 'refresh-1']]);
  });

  it('exchanges a token that is about to end, once for all who ask', async () => {
    const login = await begun();
    now = 880_000;

    const tokens = await Promise.all([login.token(), login.token(), login.replace('access-1')]);

    expect(tokens).toEqual(['access-2', 'access-2', 'access-2']);
    expect(server.requests.map(({ path, body }) => [path, body])).toEqual([
      ['/api/auth/login', { email: 'admin@example.com', password: 'secret' }],
      ['/api/auth/refresh', { refresh_token: 'refresh-1' }],
    ]);
  });

  it('does not exchange a refused token again that was exchanged meanwhile', async () => {
    const login = await begun();
    await login.replace('access-1');

    expect(await login.replace('access-1')).toBe('access-2');
    expect(server.given).toBe(2);
  });

  it('goes on after a reload', async () => {
    await begun();

    const login = new Login(sessionStorage, server.ask, () => now);
    expect(login.state()).toEqual({ is: 'restoring' });
    await Promise.all([login.restore(), login.restore()]);

    expect(login.state().is).toBe('in');
    expect([server.given, sessionStorage.getItem(KEPT)]).toEqual([2, 'refresh-2']);
  });

  it('is over when its refresh token is refused', async () => {
    const login = await begun();
    server.refuse(401, 'token_reused');

    await expect(login.replace('access-1')).rejects.toMatchObject({ code: 'token_reused' });

    expect([login.state(), sessionStorage.length]).toEqual([{ is: 'out', because: 'expired' }, 0]);
  });

  it.each([429, 503])('outlives an answer of %i', async (status) => {
    const login = await begun();
    server.refuse(status, 'later');
    await expect(login.replace('access-1')).rejects.toMatchObject({ status });

    server.answer = null;
    expect(await login.replace('access-1')).toBe('access-2');
  });

  it('can be restored once the server is reachable', async () => {
    await begun();
    server.answer = () => Promise.reject(new TypeError('no network'));
    const login = new Login(sessionStorage, server.ask, () => now);

    await login.restore();
    expect(login.state()).toMatchObject({ is: 'unreachable', problem: expect.any(Problem) as Problem });
    server.answer = null;
    await login.restore();

    expect(login.state().is).toBe('in');
  });

  it('is over where it was left while its token was exchanged', async () => {
    const login = await begun();
    const answer = server.hold();
    const exchanged = login.replace('access-1');

    server.answer = () => new Response(null, { status: 204 });
    await login.end();
    answer(server.next());

    await expect(exchanged).rejects.toMatchObject({ code: 'missing_credentials' });
    expect([login.state(), sessionStorage.length]).toEqual([{ is: 'out', because: null }, 0]);
  });

  it('does not end with an exchange for the one before', async () => {
    const login = await begun();
    const answer = server.hold();
    const exchanged = login.replace('access-1');
    server.answer = null;
    await login.end();
    await login.begin('admin@example.com', 'secret');

    answer(Response.json({ status: 401, code: 'invalid_credentials', detail: 'it is over' }, { status: 401 }));

    await expect(exchanged).rejects.toMatchObject({ status: 401 });
    expect(login.state().is).toBe('in');
  });

  it('is left to the tab that was copied, and goes on there', async () => {
    const locks = new Locks();
    const open = (storage: Storage) => new Login(storage, server.ask, () => now, locks);
    const original = open(sessionStorage);
    await original.begin('admin@example.com', 'secret');
    localStorage.clear();
    for (const [name, value] of Object.entries(sessionStorage)) localStorage.setItem(name, String(value));

    const copy = open(localStorage);
    await copy.restore();
    expect([copy.state(), localStorage.getItem(KEPT), server.given]).toEqual([{ is: 'out', because: 'copied' }, null, 1]);
    await copy.begin('admin@example.com', 'secret');
    expect(await original.replace('access-1')).toBe('access-3');

    // Each can be loaded anew: the page of before has let go.
    locks.held.clear();
    const reloaded = [open(sessionStorage), open(localStorage)];
    for (const login of reloaded) await login.restore();
    expect(reloaded.map((login) => login.state().is)).toEqual(['in', 'in']);
  });

  it('is forgotten at its end, also where the server cannot be told', async () => {
    const login = await begun();
    const listener = vi.fn();
    login.subscribe(listener);
    server.answer = () => Promise.reject(new TypeError('no network'));

    const states: string[] = [];
    login.subscribe(() => states.push(`${login.state().is} after ${server.requests.length}`));
    await login.end();

    // The pages have left before the server is told.
    expect(states).toEqual(['out after 1']);
    expect(server.requests.at(-1)).toMatchObject({ path: '/api/auth/logout', authorization: 'Bearer access-1' });
    expect([login.state(), sessionStorage.length, listener.mock.calls.length]).toEqual([{ is: 'out', because: null }, 0, 1]);
  });
});
