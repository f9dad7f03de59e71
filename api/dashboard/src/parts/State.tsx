import { Badge } from '@mantine/core';

const COLOURS: Record<string, string> = {
  queued: 'yellow.6',
  running: 'blue.6',
  completed: 'green.7',
  failed: 'red.7',
  cancelled: 'gray.5',
  active: 'green.7',
  draining: 'yellow.6',
  dead: 'red.7',
  admin: 'clay.7',
  user: 'gray.5',
  disabled: 'red.7',
  enabled: 'green.7',
  revoked: 'red.7',
  expired: 'yellow.6',
  archived: 'gray.5',
};

/** A word for how something is, with a colour beside it. */
export function State({ is }: { is: string }) {
  return (
    <Badge variant="dot" size="md" color={COLOURS[is] ?? 'gray.5'} tt="none" fw={550}>
      {is.slice(0, 1).toUpperCase() + is.slice(1)}
    </Badge>
  );
}
