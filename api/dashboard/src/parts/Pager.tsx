import { Button, Group } from '@mantine/core';
import { IconChevronLeft, IconChevronRight } from '@tabler/icons-react';
import { use } from 'react';

import { IsFormer } from './Answer';
import type { Cursor } from './useCursor';

interface PagerProps {
  at: Cursor;
  next: string | null | undefined;
  labels?: [back: string, next: string];
}

export function Pager({ at, next, labels: [back, forth] = ['Newer', 'Older'] }: PagerProps) {
  const isFormer = use(IsFormer);
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
        // What comes after the list before is no part of this one. Whoever goes on by the keyboard keeps their place.
        aria-disabled={isFormer || undefined}
        rightSection={<IconChevronRight size={16} />}
        onClick={() => {
          if (next != null && !isFormer) at.next(next);
        }}
      >
        {forth}
      </Button>
    </Group>
  );
}
