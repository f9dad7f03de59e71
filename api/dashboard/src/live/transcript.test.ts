import { describe, expect, it } from 'vitest';

import type { Job, JobEvent } from './events';
import { fold, NOTHING_YET, textOf, type Transcript } from './transcript';

const at = '2026-01-01T00:00:00Z';

function told(...events: object[]): Transcript {
  return events.map((event) => ({ at, ...event }) as JobEvent).reduce(fold, NOTHING_YET);
}

const started = (attempt: number, reason = 'first') => ({ type: 'job.started', attempt, worker_id: 'worker_1', reason });
const text = (text: string, message_id = 'msg_1') => ({ type: 'text.delta', message_id, text });
const job = (status: string) => ({ id: 'job_1', status, attempt: 1 }) as unknown as Job;

describe('what a job said', () => {
  it('is its deltas one after the other', () => {
    expect(textOf(told(started(1), text('Hel'), text('lo')))).toBe('Hello');
  });

  it('is without what an earlier attempt said', () => {
    const transcript = told(started(1), text('Hel'), { type: 'retrying', attempt: 2, reason: 'worker_lost', delay_ms: 10 });

    expect(transcript.retrying).toEqual({ reason: 'worker_lost', delayMs: 10 });
    const again = [started(2, 'worker_lost'), text('Good day')].map((event) => ({ at, ...event }) as JobEvent).reduce(fold, transcript);
    expect(textOf(again)).toBe('Good day');
    expect([again.attempt, again.retrying]).toEqual([2, null]);
  });

  it('is without a message that was withdrawn', () => {
    const transcript = told(started(1), text('Hel'), { type: 'message.withdrawn', message_id: 'msg_1' }, text('Hello', 'msg_2'));

    expect(textOf(transcript)).toBe('Hello');
  });

  it('is the whole message where there is one, and in its place', () => {
    const transcript = told(
      started(1),
      text('Hel'),
      { type: 'tool.started', tool_use_id: 'toolu_1', name: 'Bash', input: { command: 'ls' } },
      { type: 'message', message_id: 'msg_1', role: 'assistant', content: [{ type: 'text', text: 'Hello!' }, { type: 'tool_use' }] },
    );

    expect(transcript.items.map((item) => (item.is === 'tool' ? item.name : item.text))).toEqual(['Hello!', 'Bash']);
  });

  it('keeps its deltas where the whole message was too large to send', () => {
    const whole = { type: 'message', message_id: 'msg_1', role: 'assistant', content: [], truncated: true };

    expect(textOf(told(started(1), text('Hello'), whole))).toBe('Hello');
  });

  it('keeps the thinking of a message whose text comes in an event of its own', () => {
    const thinking = { type: 'thinking.delta', message_id: 'msg_1', text: 'Hm' };
    const whole = { type: 'message', message_id: 'msg_1', role: 'assistant', content: [{ type: 'text', text: 'Hello' }] };

    const transcript = told(started(1), thinking, text('Hel'), whole);

    expect(transcript.items.map((item) => (item.is === 'tool' ? '' : `${item.is}:${item.text}`))).toEqual(['thinking:Hm', 'text:Hello']);
  });

  it('has the answer of a tool with its call', () => {
    const call = { type: 'tool.started', tool_use_id: 'toolu_1', name: 'Bash', input: {} };
    const answer = { type: 'tool.finished', tool_use_id: 'toolu_1', is_error: true, output: 'no such file' };

    expect(told(started(1), call, answer).items).toMatchObject([{ is: 'tool', name: 'Bash', output: 'no such file', isError: true }]);
  });

  it('begins anew where the position was no longer kept', () => {
    const transcript = told(started(1), text('Hello'), { type: 'resync', job: job('running') });

    expect([textOf(transcript), transcript.ended]).toEqual(['', null]);
  });

  it.each(['completed', 'failed', 'cancelled'])('has the job once it is %s', (status) => {
    expect(told(started(1), { type: `job.${status}`, job: job(status) }).ended?.status).toBe(status);
  });

  it('notes the stages, and the first text once', () => {
    const transcript = told(started(1), text('a'), text('b'), { type: 'job.completed', job: job('completed') });

    expect(transcript.moments.map((moment) => moment.type)).toEqual(['job.started', 'text.first', 'job.completed']);
  });
});
