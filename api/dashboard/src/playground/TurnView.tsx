import { Anchor, Button, Group, Paper, Stack, Text } from '@mantine/core';
import { IconPlayerStop } from '@tabler/icons-react';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { useEffect, useEffectEvent, useRef } from 'react';
import { Link } from 'react-router';

import { TranscriptView } from '../jobs/TranscriptView';
import { useTranscript } from '../live/hooks';
import type { Job } from '../live/events';
import { formatCost, formatCount, formatMs } from '../parts/format';
import { tellProblem } from '../parts/notify';
import { State } from '../parts/State';
import { cancelOwnJob } from './queries';
import classes from './TurnView.module.css';

interface TurnViewProps {
  message: string;
  jobId: string;
  onEnd: () => void;
}

/** One message, and what the model makes of it. */
export function TurnView({ message, jobId, onEnd }: TurnViewProps) {
  const { transcript, problem } = useTranscript(jobId);
  const queries = useQueryClient();
  const end = useRef<HTMLDivElement>(null);
  const { ended, items } = transcript;
  // While it is tried again to follow it, it goes on.
  const isOver = ended !== null || (problem !== null && problem.retryAfterSecs === null);
  const told = useEffectEvent(() => {
    onEnd();
    void queries.invalidateQueries({ queryKey: ['own-sessions'] });
  });
  useEffect(() => {
    if (isOver) told();
  }, [isOver]);
  useEffect(() => {
    if (isNearTheEnd()) end.current?.scrollIntoView({ block: 'end' });
  }, [items]);
  return (
    <Stack gap="sm" component="section" aria-label="A message and its answer">
      <div className={`said ${classes.message ?? ''}`}>{message}</div>
      <Paper p="lg">
        <TranscriptView transcript={transcript} job={null} problem={problem} />
        <Group justify="space-between" mt="md" gap="sm">
          <Group gap="sm">
            {ended !== null && <State is={ended.status} />}
            <Text size="sm" c="dimmed" className="numbers">
              {ended === null ? 'Its ' : `${summary(ended)} · `}
              <Anchor component={Link} to={`/jobs/${jobId}`} size="sm" underline="always">
                job
              </Anchor>
            </Text>
          </Group>
          {!isOver && <Stop jobId={jobId} />}
        </Group>
        {ended?.error != null && (
          <Text size="sm" c="red" mt="xs">
            {ended.error.detail}
          </Text>
        )}
      </Paper>
      <div ref={end} className={classes.end} />
    </Stack>
  );
}

function Stop({ jobId }: { jobId: string }) {
  const cancel = useMutation({ mutationFn: () => cancelOwnJob(jobId), onError: tellProblem });
  return (
    <Button
      size="xs"
      variant="default"
      leftSection={<IconPlayerStop size={14} />}
      loading={cancel.isPending}
      disabled={cancel.isSuccess}
      onClick={() => cancel.mutate()}
    >
      Stop
    </Button>
  );
}

function summary({ cost_usd, usage, timings }: Job): string {
  const tokens = usage == null ? [] : [`${formatCount(usage.output_tokens)} tokens written`];
  const first = timings.first_token_ms == null ? [] : [`first text after ${formatMs(timings.first_token_ms)}`];
  return [formatCost(cost_usd), ...tokens, ...first, `ran ${formatMs(timings.run_ms)}`].join(' · ');
}

/** Whoever scrolled up to read is not to be pulled away. */
function isNearTheEnd(): boolean {
  const { scrollHeight, clientHeight, scrollTop } = document.documentElement;
  return scrollHeight - clientHeight - scrollTop < 240;
}
