/** The events of a job, as the API sends them over the socket and as a list. */
import { isRecord } from '../client/problem';
import type { components } from '../client/schema';

export type Job = components['schemas']['Job'];

interface Stamp {
  /** Absent for what is not kept. */
  id?: string;
  at: string;
}

interface Within {
  /** The call whose sub-agent this is of. */
  parent_tool_use_id?: string;
  truncated?: boolean;
}

export type StartReason = 'first' | 'worker_lost' | 'retry' | 'drained';

type Body =
  | { type: 'job.queued'; position?: number; estimated_wait_ms?: number | null }
  | { type: 'job.started'; attempt: number; worker_id: string; reason: StartReason }
  | { type: 'session.ready'; session_id: string }
  | ({ type: 'text.delta'; message_id: string; text: string } & Within)
  | { type: 'thinking.delta'; message_id: string; text: string }
  | { type: 'message.withdrawn'; message_id: string }
  | ({ type: 'tool.started'; tool_use_id: string; name: string; input: unknown } & Within)
  | ({ type: 'tool.finished'; tool_use_id: string; is_error: boolean; output: string } & Within)
  | ({ type: 'message'; message_id: string; role: string; content: unknown } & Within)
  | { type: 'retrying'; attempt: number; reason: StartReason; delay_ms: number }
  | { type: 'resync'; job: Job }
  | { type: 'job.completed' | 'job.failed' | 'job.cancelled'; job: Job };

export type JobEvent = Stamp & Body;

export function isLast(event: JobEvent): boolean {
  return event.type === 'job.completed' || event.type === 'job.failed' || event.type === 'job.cancelled';
}

export function isJobEvent(value: unknown): value is JobEvent {
  return isRecord(value) && typeof value.type === 'string' && typeof value.at === 'string';
}
