import { Alert, Badge, Collapse, Group, Loader, Stack, Text, UnstyledButton } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { IconBrain, IconChevronRight, IconTool } from '@tabler/icons-react';
import type { ReactNode } from 'react';

import type { Problem } from '../client/problem';
import type { Job } from '../live/events';
import type { Item, Transcript } from '../live/transcript';
import { formatCount, formatMs } from '../parts/format';
import classes from './TranscriptView.module.css';

interface TranscriptViewProps {
  transcript: Transcript;
  /** The job as its record has it, if it is known. */
  job: Job | null;
  problem?: Problem | null;
}

/** What a job says, as it says it. All of it is shown as text. */
export function TranscriptView({ transcript, job, problem = null }: TranscriptViewProps) {
  const status = transcript.ended?.status ?? job?.status ?? 'queued';
  const isOver = status === 'completed' || status === 'failed' || status === 'cancelled';
  const result = transcript.ended?.result ?? job?.result;
  const items = transcript.items;
  // Of an old job only the record is left.
  const isOnlyRecorded = items.length === 0 && result != null && result.text !== '';
  return (
    <Stack gap="sm">
      {problem !== null && !isOver && (
        <Alert
          color="yellow"
          variant="outline"
          title={problem.retryAfterSecs === null ? 'Its events cannot be followed' : 'Its events come later'}
        >
          {problem.detail}
        </Alert>
      )}
      {isOnlyRecorded && <div className={`said ${classes.text ?? ''}`}>{result.text}</div>}
      {items.map((item, place) => (
        <ItemView key={place} item={item} isGrowing={!isOver && place === items.length - 1} />
      ))}
      {isOver && items.length === 0 && !isOnlyRecorded && (
        <Text c="dimmed" size="sm">
          It said nothing.
        </Text>
      )}
      {!isOver && (
        <Group gap="xs" role="status">
          <Loader size="xs" type="dots" />
          <Text size="sm" c="dimmed">
            {doing(transcript, status)}
          </Text>
        </Group>
      )}
    </Stack>
  );
}

function doing({ retrying, position, items }: Transcript, status: Job['status']): string {
  if (retrying !== null) return `It will be tried again in ${formatMs(retrying.delayMs)}.`;
  if (status === 'queued' && position !== null) return `It waits for a worker; ${formatCount(position)} go before it.`;
  const last = items.at(-1);
  if (last?.is === 'tool' && last.output === null) return `${last.name} is at work.`;
  if (last?.is === 'thinking') return 'It thinks.';
  return items.length === 0 ? (status === 'queued' ? 'It waits for a worker.' : 'It begins.') : 'It goes on.';
}

function ItemView({ item, isGrowing }: { item: Item; isGrowing: boolean }) {
  switch (item.is) {
    case 'text':
      return (
        <div className={`said ${classes.text ?? ''}`} data-within={item.within ?? undefined} data-growing={isGrowing || undefined}>
          {item.text}
        </div>
      );
    case 'thinking':
      return (
        <Folded icon={<IconBrain size={16} stroke={1.6} />} title="Thinking" startsOpen={isGrowing}>
          <div className={`said ${classes.thinking ?? ''}`}>{item.text}</div>
        </Folded>
      );
    case 'tool':
      return (
        <Folded
          icon={<IconTool size={16} stroke={1.6} />}
          title={
            <>
              {item.name}{' '}
              <Text component="span" size="sm" c="dimmed" ff="monospace">
                {gist(item.input)}
              </Text>
            </>
          }
          mark={
            item.output === null ? (
              isGrowing && <Loader size={14} />
            ) : (
              <Badge size="sm" variant="dot" tt="none" color={item.isError ? 'red.7' : 'green.7'}>
                {item.isError ? 'Failed' : 'Done'}
              </Badge>
            )
          }
        >
          <pre className={`said ${classes.code ?? ''}`}>
            {item.inputTruncated ? 'too large to show' : JSON.stringify(item.input, null, 2)}
          </pre>
          {item.output !== null && (
            <pre className={`said ${classes.code ?? ''}`}>
              {item.output === '' ? 'no output' : item.output}
              {item.outputTruncated ? '\n… (cut)' : ''}
            </pre>
          )}
        </Folded>
      );
  }
}

interface FoldedProps {
  icon: ReactNode;
  title: ReactNode;
  mark?: ReactNode;
  startsOpen?: boolean;
  children: ReactNode;
}

function Folded({ icon, title, mark, startsOpen = false, children }: FoldedProps) {
  const [isOpen, { toggle }] = useDisclosure(startsOpen);
  return (
    <div className={classes.folded}>
      <UnstyledButton className={classes.fold} onClick={toggle} aria-expanded={isOpen}>
        <IconChevronRight size={14} className={classes.chevron} data-open={isOpen || undefined} aria-hidden />
        {icon}
        <Text component="span" size="sm" fw={550} truncate flex={1}>
          {title}
        </Text>
        {mark}
      </UnstyledButton>
      <Collapse expanded={isOpen}>
        <div className={classes.inside}>{children}</div>
      </Collapse>
    </div>
  );
}

/** What a tool was asked for, in a few words. */
function gist(input: unknown): string {
  if (typeof input !== 'object' || input === null) return '';
  const said = Object.values(input).find((value) => typeof value === 'string');
  return typeof said === 'string' ? said.split('\n', 1)[0]?.slice(0, 80) ?? '' : '';
}
