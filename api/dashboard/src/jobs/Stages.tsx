import { Text, Timeline } from '@mantine/core';
import { IconAlertTriangle, IconCheck, IconClock, IconMessage, IconPlayerPlay, IconRotateClockwise, IconX } from '@tabler/icons-react';
import type { ReactNode } from 'react';

import type { Moment } from '../live/transcript';
import { formatMs, formatTime } from '../parts/format';
import { hasEnded, type UserJob } from './queries';

interface Stage {
  key: string;
  title: string;
  at: string;
  detail: string | null;
  sign: ReactNode;
}

/** What the job went through: what its record says, and in between what its events do. */
export function Stages({ job, moments }: { job: UserJob; moments: readonly Moment[] }) {
  const stages = stagesOf(job, moments);
  const begun = Date.parse(job.created_at);
  return (
    <Timeline active={hasEnded(job.status) ? stages.length : stages.length - 1} bulletSize={26} lineWidth={2}>
      {stages.map(({ key, title, at, detail, sign }) => (
        <Timeline.Item key={key} title={title} bullet={sign}>
          <Text size="sm" c="dimmed" className="numbers" title={formatTime(at)}>
            {key === 'created' ? formatTime(at) : `after ${formatMs(Math.max(Date.parse(at) - begun, 0))}`}
          </Text>
          {detail !== null && (
            <Text size="xs" c="dimmed" style={{ overflowWrap: 'anywhere' }}>
              {detail}
            </Text>
          )}
        </Timeline.Item>
      ))}
    </Timeline>
  );
}

const SIGN = { size: 14, 'aria-hidden': true };

function stagesOf(job: UserJob, moments: readonly Moment[]): Stage[] {
  const stages: Stage[] = [
    { key: 'created', title: 'Accepted', at: job.created_at, detail: null, sign: <IconClock {...SIGN} /> },
  ];
  const isTold = moments.some(({ type }) => type === 'job.started');
  if (!isTold && job.started_at != null) {
    stages.push({ key: 'started', title: 'Started', at: job.started_at, detail: `attempt ${job.attempt}`, sign: <IconPlayerPlay {...SIGN} /> });
    const first = job.timings.first_token_ms;
    if (first != null) {
      const at = new Date(Date.parse(job.started_at) + first).toISOString();
      stages.push({ key: 'text', title: 'First text', at, detail: null, sign: <IconMessage {...SIGN} /> });
    }
  }
  moments.forEach(({ type, at, detail }, place) => {
    const key = `${place}`;
    if (type === 'job.started') stages.push({ key, title: 'Started', at, detail, sign: <IconPlayerPlay {...SIGN} /> });
    if (type === 'text.first') stages.push({ key, title: 'First text', at, detail, sign: <IconMessage {...SIGN} /> });
    if (type === 'retrying') stages.push({ key, title: 'Will be tried again', at, detail, sign: <IconRotateClockwise {...SIGN} /> });
  });
  if (job.cancel_requested_at != null) {
    stages.push({ key: 'asked', title: 'Asked to end', at: job.cancel_requested_at, detail: null, sign: <IconX {...SIGN} /> });
  }
  if (job.finished_at != null && hasEnded(job.status)) {
    const sign = { completed: <IconCheck {...SIGN} />, failed: <IconAlertTriangle {...SIGN} />, cancelled: <IconX {...SIGN} /> };
    const status = job.status as keyof typeof sign;
    const title = status.slice(0, 1).toUpperCase() + status.slice(1);
    stages.push({ key: 'ended', title, at: job.finished_at, detail: job.error?.code ?? null, sign: sign[status] });
  }
  return stages;
}
