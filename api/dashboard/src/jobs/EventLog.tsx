import { Code, Stack, Text } from '@mantine/core';

import type { Problem } from '../client/problem';
import type { Transcript } from '../live/transcript';
import { LOG_LIMIT } from '../live/transcript';
import { formatCount } from '../parts/format';
import classes from './EventLog.module.css';

/** The events as they came, for whoever writes a client. */
export function EventLog({ transcript, problem }: { transcript: Transcript; problem: Problem | null }) {
  const { log, events } = transcript;
  if (log.length === 0) {
    return (
      <Text c="dimmed" size="sm">
        {problem?.detail ?? 'No events yet.'}
      </Text>
    );
  }
  return (
    <Stack gap="xs">
      <Text size="sm" c="dimmed">
        {events > LOG_LIMIT ? `The last ${formatCount(LOG_LIMIT)} of ${formatCount(events)} events` : `${formatCount(events)} events`}
      </Text>
      <div className={classes.log} tabIndex={0} role="region" aria-label="Events">
        {log.map((event, place) => {
          const { id, type, at, ...rest } = event;
          return (
            <div key={id ?? `${place} ${at}`} className={classes.line}>
              <Text component="span" size="xs" c="dimmed" ff="monospace" className={classes.id}>
                {id ?? '·'}
              </Text>
              <Text component="span" size="xs" fw={600} ff="monospace" className={classes.type}>
                {type}
              </Text>
              <Code className={`said ${classes.rest ?? ''}`}>{JSON.stringify(rest)}</Code>
            </div>
          );
        })}
      </div>
    </Stack>
  );
}
