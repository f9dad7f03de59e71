import { Text, Tooltip } from '@mantine/core';

import { useLiveness } from '../live/hooks';
import type { Liveness } from '../live/socket';
import classes from './LiveState.module.css';

const WORDS: Record<Liveness, [label: string, explanation: string]> = {
  idle: ['Connecting', 'Connecting to the server'],
  connecting: ['Connecting', 'Connecting to the server'],
  live: ['Live', 'What you see is as it is now'],
  reconnecting: ['Reconnecting', 'The connection is lost and being made anew; what you see may be old'],
};

export function LiveState() {
  const liveness = useLiveness();
  const [label, explanation] = WORDS[liveness];
  return (
    <Tooltip label={explanation} multiline maw={260}>
      <Text component="span" role="status" className={classes.state} data-liveness={liveness}>
        <span className={classes.dot} aria-hidden />
        {label}
      </Text>
    </Tooltip>
  );
}
