/**
 * The one WebSocket of the page. It is open while somebody listens. A connection that is lost is made anew, later each
 * time, and goes on where it was: each job after the last event that came, the news from how things stand.
 */
import { isRecord, Problem } from '../client/problem';
import { isJobEvent, isLast, type JobEvent } from './events';

export type Liveness = 'idle' | 'connecting' | 'live' | 'reconnecting';

export interface SystemNews {
  queue: {
    queued: number;
    running: number;
    oldest_wait_ms: number | null;
    dead_letters: number;
    workers: number;
    slots: number;
  };
  workers: {
    id: string;
    name: string;
    host: string;
    version: string;
    state: 'active' | 'draining' | 'dead';
    slots: number;
    running: number;
    started_at: string;
    last_beat_at: string;
  }[];
}

export interface Follower {
  hear: (event: JobEvent) => void;
  /**
   * Why it cannot be followed; null once it can. A problem that says when it is tried again
   * (`retryAfterSecs`) passes, any other is for good.
   */
  fail: (problem: Problem | null) => void;
}

/** The part of a WebSocket that is used here. */
export interface Line {
  readonly readyState: number;
  send: (message: string) => void;
  close: () => void;
  onopen: (() => void) | null;
  onmessage: ((message: { data: unknown }) => void) | null;
  onclose: ((end: { code: number }) => void) | null;
}

export interface Surroundings {
  token: (forMs?: number) => Promise<string>;
  replace: (refused: string) => Promise<string>;
  open: (token: string) => Line;
  /** A number from 0 to 1. */
  random: () => number;
  after: (ms: number, act: () => void) => () => void;
  now: () => number;
}

interface Subscription extends Follower {
  jobId: string;
  after: string | null;
  /** The request whose `ack` begins it; what comes before that is of an earlier one. */
  request: string | null;
  isOpen: boolean;
  hasEnded: boolean;
  failures: number;
  cancelRetry: (() => void) | null;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 30_000;
/** So long before a token ends, the next one is shown. */
const RENEW_MS = 60_000;
const OPEN = 1;
const STOPPING = 1012;
const NOT_KNOWN = 4401;
/** What the same message may not meet in a moment. */
const PASSING = ['draining', 'internal_error', 'rate_limited', 'request_timeout', 'unavailable'];

export class LiveSocket {
  #line: Line | null = null;
  #liveness: Liveness = 'idle';
  #failures = 0;
  #requests = 0;
  /** What was begun for a connection nobody wants any more is dropped. */
  #era = 0;
  #token: string | null = null;
  #isRefused = false;
  #cancelWait: (() => void) | null = null;
  #cancelRenewal: (() => void) | null = null;
  #news: SystemNews | null = null;
  readonly #subscriptions = new Set<Subscription>();
  readonly #watchers = new Set<() => void>();
  readonly #listeners = new Set<() => void>();

  constructor(private readonly around: Surroundings) {}

  readonly liveness = (): Liveness => this.#liveness;

  readonly onLiveness = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  /** How workers and queue stand, once that is known. */
  readonly news = (): SystemNews | null => this.#news;

  readonly watchSystem = (listener: () => void): (() => void) => {
    this.#watchers.add(listener);
    if (this.#watchers.size === 1) this.#say({ type: 'watch', what: 'system' });
    this.#connect();
    return () => {
      this.#watchers.delete(listener);
      if (this.#watchers.size === 0) this.#say({ type: 'unwatch', what: 'system' });
      this.#closeIfUnused();
    };
  };

  /** Hear the events of a job, from its start or from after the one with the id `after`. */
  follow(jobId: string, follower: Follower, after: string | null = null): () => void {
    const subscription: Subscription = {
      ...follower,
      jobId,
      after,
      request: null,
      isOpen: false,
      hasEnded: false,
      failures: 0,
      cancelRetry: null,
    };
    this.#subscriptions.add(subscription);
    this.#subscribe(subscription);
    this.#connect();
    return () => {
      this.#subscriptions.delete(subscription);
      subscription.cancelRetry?.();
      if (!subscription.hasEnded) this.#say({ type: 'unsubscribe', job_id: jobId });
      this.#closeIfUnused();
    };
  }

  /** The network is back: do not wait any longer. */
  readonly hurry = (): void => {
    if (this.#cancelWait === null) return;
    this.#cancelWait();
    this.#cancelWait = null;
    this.#open();
  };

  #connect(): void {
    if (this.#line === null && this.#cancelWait === null && this.#liveness === 'idle') this.#open();
  }

  #open(): void {
    this.#set(this.#failures === 0 && !this.#isRefused ? 'connecting' : 'reconnecting');
    const refused = this.#isRefused ? this.#token : null;
    const era = this.#era;
    const token = refused === null ? this.around.token(RENEW_MS) : this.around.replace(refused);
    token.then(
      (token) => {
        if (era === this.#era) this.#openWith(token);
      },
      () => {
        if (era === this.#era) this.#wait();
      },
    );
  }

  #openWith(token: string): void {
    this.#token = token;
    const line = this.around.open(token);
    this.#line = line;
    line.onopen = () => this.#opened();
    line.onmessage = ({ data }) => this.#heard(data);
    line.onclose = ({ code }) => {
      if (this.#line === line) this.#lost(code);
    };
  }

  #opened(): void {
    // Also tells when the token ends.
    if (this.#token !== null) this.#say({ type: 'auth', token: this.#token, request_id: 'auth' });
    if (this.#watchers.size > 0) this.#say({ type: 'watch', what: 'system' });
    for (const subscription of this.#subscriptions) this.#subscribe(subscription);
  }

  #lost(code: number): void {
    this.#line = null;
    this.#cancelRenewal?.();
    this.#cancelRenewal = null;
    for (const subscription of this.#subscriptions) subscription.isOpen = false;
    // They are of the connection: what is asked for meanwhile is newer.
    this.#tell(null);
    // A second refusal in a row is no matter of a token that was just over.
    const isFirstRefusal = code === NOT_KNOWN && !this.#isRefused;
    this.#isRefused = code === NOT_KNOWN;
    this.#set('reconnecting');
    if ((code === STOPPING && this.#failures === 0) || isFirstRefusal) {
      this.#failures += 1;
      this.#open();
    } else {
      this.#wait();
    }
  }

  #wait(): void {
    const ms = this.#backOff(this.#failures);
    this.#failures += 1;
    this.#set('reconnecting');
    this.#cancelWait = this.around.after(ms, () => {
      this.#cancelWait = null;
      this.#open();
    });
  }

  #backOff(failures: number): number {
    const longest = Math.min(FIRST_WAIT_MS * 2 ** failures, LONGEST_WAIT_MS);
    // All pages of a server that went away would come back at once.
    return longest / 2 + (longest / 2) * this.around.random();
  }

  #heard(data: unknown): void {
    const message = parsed(data);
    if (message === null) return;
    switch (message.type) {
      case 'ack':
        this.#acknowledged(message);
        return;
      case 'event':
        this.#told(message);
        return;
      case 'system':
        this.#tell(message as unknown as SystemNews);
        return;
      case 'error':
        this.#refused(message);
        return;
      default:
        return;
    }
  }

  #acknowledged(message: Record<string, unknown>): void {
    if (message.request_id === 'auth') {
      this.#failures = 0;
      this.#isRefused = false;
      this.#set('live');
      if (typeof message.expires_at === 'string') {
        this.#renewIn(Math.max(Date.parse(message.expires_at) - this.around.now() - RENEW_MS, 1_000));
      }
      return;
    }
    const subscription = this.#by(message.request_id);
    if (subscription === null) return;
    subscription.isOpen = true;
    subscription.hasEnded = message.ended === true;
    if (subscription.failures > 0) subscription.fail(null);
    subscription.failures = 0;
  }

  #renewIn(ms: number): void {
    this.#cancelRenewal?.();
    this.#cancelRenewal = this.around.after(ms, () => {
      this.around.token(RENEW_MS * 1.5).then(
        (token) => {
          this.#token = token;
          this.#say({ type: 'auth', token, request_id: 'auth' });
        },
        () => {
          // The socket ends with its token; what comes after that is tried anew.
        },
      );
    });
  }

  #told(message: Record<string, unknown>): void {
    const { event } = message;
    if (!isJobEvent(event)) return;
    for (const subscription of this.#subscriptions) {
      if (subscription.jobId !== message.job_id || !subscription.isOpen) continue;
      if (event.type === 'resync') subscription.after = null;
      else if (event.id !== undefined) subscription.after = event.id;
      subscription.hasEnded ||= isLast(event);
      subscription.hear(event);
    }
  }

  #refused(message: Record<string, unknown>): void {
    const { request_id, code, retry_after_secs } = message;
    const isPassing = PASSING.includes(String(code));
    const waitMs = (failures: number) => (typeof retry_after_secs === 'number' ? retry_after_secs * 1_000 : this.#backOff(failures));
    if (request_id === 'auth') {
      if (isPassing) {
        this.#renewIn(waitMs(this.#failures));
        this.#failures += 1;
      } else {
        // It would be closed once its token ends: better now, with another one.
        const line = this.#line;
        this.#lost(NOT_KNOWN);
        line?.close();
      }
      return;
    }
    // Nothing was asked: the news are no longer for this user.
    if (request_id === undefined) this.#tell(null);
    const subscription = this.#by(request_id);
    if (subscription === null) return;
    const ms = isPassing ? waitMs(subscription.failures) : null;
    const problem = new Problem(0, String(code), String(message.detail), null, [], ms === null ? null : Math.ceil(ms / 1_000));
    if (ms === null) {
      this.#subscriptions.delete(subscription);
      this.#closeIfUnused();
    } else {
      subscription.failures += 1;
      subscription.cancelRetry = this.around.after(ms, () => this.#subscribe(subscription));
    }
    subscription.fail(problem);
  }

  #by(request: unknown): Subscription | null {
    for (const subscription of this.#subscriptions) {
      if (subscription.request !== null && subscription.request === request) return subscription;
    }
    return null;
  }

  #subscribe(subscription: Subscription): void {
    if (subscription.hasEnded) return;
    subscription.cancelRetry?.();
    subscription.cancelRetry = null;
    subscription.isOpen = false;
    subscription.request = `subscribe-${++this.#requests}`;
    const after = subscription.after === null ? {} : { after: subscription.after };
    this.#say({ type: 'subscribe', request_id: subscription.request, job_id: subscription.jobId, ...after });
  }

  /** Before the line is open there is nobody to say it to; once it is, all of it is said. */
  #say(message: object): void {
    if (this.#line?.readyState === OPEN) this.#line.send(JSON.stringify(message));
  }

  #closeIfUnused(): void {
    if (this.#watchers.size > 0 || this.#subscriptions.size > 0) return;
    this.#era += 1;
    this.#cancelWait?.();
    this.#cancelWait = null;
    this.#cancelRenewal?.();
    this.#cancelRenewal = null;
    const line = this.#line;
    this.#line = null;
    this.#news = null;
    this.#failures = 0;
    this.#isRefused = false;
    this.#token = null;
    line?.close();
    this.#set('idle');
  }

  #tell(news: SystemNews | null): void {
    if (this.#news === news) return;
    this.#news = news;
    for (const listener of this.#watchers) listener();
  }

  #set(liveness: Liveness): void {
    if (this.#liveness === liveness) return;
    this.#liveness = liveness;
    for (const listener of this.#listeners) listener();
  }
}

function parsed(data: unknown): Record<string, unknown> | null {
  if (typeof data !== 'string') return null;
  try {
    const message: unknown = JSON.parse(data);
    return isRecord(message) ? message : null;
  } catch {
    return null;
  }
}
