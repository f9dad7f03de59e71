/**
 * What a job said, folded from its events. A new attempt voids what was said before it, a withdrawn message its own
 * pieces, and a whole message wins over its pieces.
 */
import { isRecord } from '../client/problem';
import type { Job, JobEvent, StartReason } from './events';

export type Item =
  | { is: 'text' | 'thinking'; messageId: string; text: string; within: string | null }
  | {
      is: 'tool';
      id: string;
      name: string;
      input: unknown;
      inputTruncated: boolean;
      output: string | null;
      outputTruncated: boolean;
      isError: boolean;
      within: string | null;
    };

export interface Moment {
  at: string;
  type: JobEvent['type'] | 'text.first';
  detail: string | null;
}

export interface Transcript {
  attempt: number;
  items: readonly Item[];
  /** The stages it went through, of all attempts that are known. */
  moments: readonly Moment[];
  /** The next try, while it is waited for. */
  retrying: { reason: StartReason; delayMs: number } | null;
  position: number | null;
  /** The job as its last event says it will stay. */
  ended: Job | null;
  /** How many events came. */
  events: number;
  /** The latest of them as they came. */
  log: readonly JobEvent[];
}

/** How many events a log holds: a job may have tens of thousands. */
export const LOG_LIMIT = 500;

export const NOTHING_YET: Transcript = {
  attempt: 0,
  items: [],
  moments: [],
  retrying: null,
  position: null,
  ended: null,
  events: 0,
  log: [],
};

export function fold(before: Transcript, event: JobEvent): Transcript {
  const log = [...before.log.slice(1 - LOG_LIMIT), event];
  const after = { ...before, events: before.events + 1, log };
  switch (event.type) {
    case 'job.queued':
      return { ...after, position: event.position ?? null };
    case 'job.started':
      return {
        ...after,
        attempt: event.attempt,
        items: [],
        retrying: null,
        position: null,
        moments: noted(before, event, `attempt ${event.attempt}${REASONS[event.reason]}`),
      };
    case 'session.ready':
      return { ...after, moments: noted(before, event, null) };
    case 'text.delta':
      return {
        ...after,
        items: grown(before.items, 'text', event.message_id, event.text, event.parent_tool_use_id ?? null),
        moments: saysText(before) ? before.moments : [...before.moments, { at: event.at, type: 'text.first', detail: null }],
      };
    case 'thinking.delta':
      return { ...after, items: grown(before.items, 'thinking', event.message_id, event.text, null) };
    case 'message.withdrawn':
      return { ...after, items: before.items.filter((item) => item.is === 'tool' || item.messageId !== event.message_id) };
    case 'tool.started':
      return {
        ...after,
        items: [
          ...before.items,
          {
            is: 'tool',
            id: event.tool_use_id,
            name: event.name,
            input: event.input,
            inputTruncated: event.truncated ?? false,
            output: null,
            outputTruncated: false,
            isError: false,
            within: event.parent_tool_use_id ?? null,
          },
        ],
      };
    case 'tool.finished':
      return {
        ...after,
        items: before.items.map((item) =>
          item.is === 'tool' && item.id === event.tool_use_id
            ? { ...item, output: event.output, isError: event.is_error, outputTruncated: event.truncated ?? false }
            : item,
        ),
      };
    case 'message':
      return { ...after, items: event.truncated === true ? before.items : settled(before.items, event) };
    case 'retrying':
      return { ...after, retrying: { reason: event.reason, delayMs: event.delay_ms }, moments: noted(before, event, null) };
    case 'resync':
      return { ...NOTHING_YET, attempt: event.job.attempt, events: after.events, log };
    case 'job.completed':
    case 'job.failed':
    case 'job.cancelled':
      return {
        ...after,
        retrying: null,
        position: null,
        ended: event.job,
        moments: noted(before, event, event.job.error?.detail ?? null),
      };
  }
}

/** All that the model itself said, without its sub-agents. */
export function textOf(transcript: Transcript): string {
  return transcript.items.flatMap((item) => (item.is === 'text' && item.within === null ? [item.text] : [])).join('\n\n');
}

const REASONS: Record<StartReason, string> = {
  first: '',
  worker_lost: ', after its worker was lost',
  retry: ', after a failure that may pass',
  drained: ', after its worker was drained',
};

function noted(transcript: Transcript, event: JobEvent, detail: string | null): Moment[] {
  return [...transcript.moments, { at: event.at, type: event.type, detail }];
}

function saysText(transcript: Transcript): boolean {
  return transcript.items.some((item) => item.is === 'text');
}

function grown(
  items: readonly Item[],
  is: 'text' | 'thinking',
  messageId: string,
  text: string,
  within: string | null,
): readonly Item[] {
  const last = items.at(-1);
  if (last?.is === is && last.messageId === messageId) {
    return [...items.slice(0, -1), { ...last, text: last.text + text }];
  }
  return [...items, { is, messageId, text, within }];
}

/** The items with a whole message in the place of its pieces, where the first of them was. */
function settled(items: readonly Item[], event: Extract<JobEvent, { type: 'message' }>): readonly Item[] {
  const within = event.parent_tool_use_id ?? null;
  const messageId = event.message_id;
  const isOfIt = (item: Item) => item.is !== 'tool' && item.messageId === messageId;
  const whole = blocksOf(event.content).flatMap((block): Item[] => {
    if (block.type === 'text' && typeof block.text === 'string') return [{ is: 'text', messageId, text: block.text, within }];
    if (block.type === 'thinking' && typeof block.thinking === 'string' && block.thinking !== '') {
      return [{ is: 'thinking', messageId, text: block.thinking, within }];
    }
    return [];
  });
  // A message can come in several events, one for each of its blocks: what another one brought stays.
  const kinds = new Set(whole.map((item) => item.is));
  const isReplaced = (item: Item) => isOfIt(item) && kinds.has(item.is);
  const first = items.findIndex(isReplaced);
  if (first === -1) return [...items, ...whole];
  return [...items.slice(0, first), ...whole, ...items.slice(first).filter((item) => !isReplaced(item))];
}

function blocksOf(content: unknown): Record<string, unknown>[] {
  if (typeof content === 'string') return [{ type: 'text', text: content }];
  return Array.isArray(content) ? content.filter(isRecord) : [];
}
