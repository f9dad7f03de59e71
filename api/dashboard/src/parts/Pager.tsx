import { Button, Group } from '@mantine/core';
import { IconChevronLeft, IconChevronRight } from '@tabler/icons-react';

import type { Cursor } from './useCursor';

interface PagerProps {
  at: Cursor;
  next: string | null | undefined;
  labels?: [back: string, next: string];
}

export function Pager({ at, next, labels: [back, forth] = ['Newer', 'Older'] }: PagerProps) {
  if (at.isFirst && next == null) return null;
  return (
    <Group component="nav" justify="flex-end" gap="sm" aria-label="Pages of the list">
      <Button variant="default" size="sm" disabled={at.isFirst} leftSection={<IconChevronLeft size={16} />} onClick={at.back}>
        {back}
      </Button>
      <Button
        variant="default"
        size="sm"
        disabled={next == null}
        rightSection={<IconChevronRight size={16} />}
        onClick={() => {
          if (next != null) at.next(next);
        }}
      >
        {forth}
      </Button>
    </Group>
  );
}
