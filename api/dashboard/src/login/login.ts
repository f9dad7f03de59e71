/**
 * Who is logged in, in this tab. The access token is in memory alone; the refresh token is in the tab's own storage, so
 * that a reload needs no password. It may be used once: a second use ends the whole login, so refreshes never overlap,
 * and a copy of the tab, which has the token as well, leaves it alone.
 */
import { Problem } from '../client/problem';
import type { components } from '../client/schema';

export type User = components['schemas']['User'];
type LoggedIn = components['schemas']['LoggedIn'];

export type LoginState =
  | { is: 'restoring' }
  | { is: 'unreachable'; problem: Problem }
  | { is: 'out'; because: WhyOut }
  | { is: 'in'; user: User };

/** Null: nobody was in, or they left. */
export type WhyOut = 'expired' | 'copied' | null;

const STORED = 'claude-api.refresh-token';
/** What this tab is called. It holds the lock of that name for as long as it is there. */
const TAB = 'claude-api.tab';
/** Longer than it takes the page before a reload to be gone, and its lock with it. */
const COPIED_MS = 2_000;
/** A token that ends sooner is exchanged before it is used. */
const MARGIN_MS = 30_000;

interface Access {
  token: string;
  endsAt: number;
}

export class Login {
  #state: LoginState;
  #access: Access | null = null;
  #refreshing: Promise<Access> | null = null;
  #isOriginal: Promise<boolean> | null = null;
  /** What was begun for a login that is over is dropped. */
  #era = 0;
  readonly #listeners = new Set<() => void>();

  constructor(
    private readonly storage: Storage,
    private readonly ask: typeof fetch = (...request) => fetch(...request),
    private readonly now: () => number = Date.now,
    /** Only where the page came over TLS, or from this machine. */
    private readonly locks: Pick<LockManager, 'request'> | undefined = navigator.locks,
  ) {
    this.#state = storage.getItem(STORED) === null ? { is: 'out', because: null } : { is: 'restoring' };
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  readonly state = (): LoginState => this.#state;

  /** Take up the login of before a reload. */
  async restore(): Promise<void> {
    if (this.#state.is === 'out' || this.#state.is === 'in') return;
    if (!(await this.#claim())) {
      this.#forget('copied');
      return;
    }
    try {
      await this.#refresh();
    } catch (error) {
      // Without a login the state says so already.
      if (this.storage.getItem(STORED) !== null) this.#set({ is: 'unreachable', problem: Problem.from(error) });
    }
  }

  async begin(email: string, password: string): Promise<void> {
    this.#take(await this.#post('/api/auth/login', { email, password }));
    void this.#claim();
  }

  /** A token that is good for a while. */
  async token(forMs = MARGIN_MS): Promise<string> {
    const access = this.#access;
    if (access !== null && access.endsAt - this.now() > forMs) return access.token;
    return (await this.#refresh()).token;
  }

  /** A token in the place of one that was refused. */
  async replace(refused: string): Promise<string> {
    if (this.#access !== null && this.#access.token !== refused) return this.#access.token;
    return (await this.#refresh()).token;
  }

  /** The account was changed. */
  changed(user: User): void {
    if (this.#state.is === 'in') this.#set({ is: 'in', user });
  }

  async end(): Promise<void> {
    const token = await this.token(0).catch(() => null);
    this.#forget(null);
    if (token === null) return;
    // The pages leave first: what they ask for once the login has ended would look like a stolen token.
    await Promise.resolve();
    try {
      await this.ask('/api/auth/logout', { method: 'POST', headers: { authorization: `Bearer ${token}` }, keepalive: true });
    } catch {
      // Whoever cannot reach the server is out of this tab all the same; the login ends with its time.
    }
  }

  /** Be the tab that its storage says; whether no other is. Who copies a tab copies its storage, and the name in it. */
  #claim(): Promise<boolean> {
    this.#isOriginal ??= this.#hold();
    return this.#isOriginal;
  }

  async #hold(): Promise<boolean> {
    const { locks, storage } = this;
    if (locks === undefined) return true;
    const held = (name: string) =>
      new Promise<boolean>((tell) => {
        const forGood = () => {
          tell(true);
          return new Promise(() => undefined);
        };
        locks.request(`${TAB}.${name}`, { signal: AbortSignal.timeout(COPIED_MS) }, forGood).catch(() => tell(false));
      });
    const name = storage.getItem(TAB);
    if (name !== null && (await held(name))) return true;
    const own = crypto.randomUUID();
    storage.setItem(TAB, own);
    await held(own);
    return name === null;
  }

  #refresh(): Promise<Access> {
    this.#refreshing ??= this.#exchange().finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  async #exchange(): Promise<Access> {
    const refresh_token = this.storage.getItem(STORED);
    if (refresh_token === null) {
      this.#forget(null);
      throw notLoggedIn();
    }
    const era = this.#era;
    let answer: LoggedIn;
    try {
      answer = await this.#post('/api/auth/refresh', { refresh_token });
    } catch (error) {
      const { status } = Problem.from(error);
      // Anything else may pass: the token is good still.
      if (era === this.#era && [400, 401, 403, 422].includes(status)) this.#forget('expired');
      throw error;
    }
    // Whoever has left meanwhile stays out.
    if (era !== this.#era) throw notLoggedIn();
    return this.#take(answer);
  }

  async #post(path: string, body: object): Promise<LoggedIn> {
    let response: Response;
    try {
      response = await this.ask(path, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
    } catch {
      throw Problem.unreachable();
    }
    const answer: unknown = await response.json().catch(() => null);
    if (!response.ok) throw Problem.of(response, answer);
    return answer as LoggedIn;
  }

  #take(answer: LoggedIn): Access {
    this.storage.setItem(STORED, answer.refresh_token);
    const access = { token: answer.access_token, endsAt: this.now() + answer.expires_in * 1000 };
    this.#access = access;
    this.#set({ is: 'in', user: answer.user });
    return access;
  }

  #forget(because: WhyOut): void {
    this.#era += 1;
    this.#access = null;
    this.storage.removeItem(STORED);
    this.#set({ is: 'out', because });
  }

  #set(state: LoginState): void {
    this.#state = state;
    for (const listener of this.#listeners) listener();
  }
}

function notLoggedIn(): Problem {
  return new Problem(401, 'missing_credentials', 'You are not logged in.');
}

export const login = new Login(window.sessionStorage);
