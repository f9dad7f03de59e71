import { Alert, Button, Code, Grid, Group, Paper, Stack, Tabs, Text, Title } from '@mantine/core';
import { IconAlertTriangle, IconPlayerStop, IconRotateClockwise } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { useEffect } from 'react';
import { Link, useNavigate, useParams } from 'react-router';

import { type Followed, useTranscript } from '../live/hooks';
import { Answer, Lines } from '../parts/Answer';
import { ask } from '../parts/confirm';
import { Copy } from '../parts/Id';
import { tellProblem, tellSuccess } from '../parts/notify';
import { Page } from '../parts/Page';
import { State } from '../parts/State';
import { EventLog } from './EventLog';
import { JobFacts } from './JobFacts';
import { cancelJob, hasEnded, jobQuery, retryDeadLetter, type UserJob } from './queries';
import { Stages } from './Stages';
import { TranscriptView } from './TranscriptView';

export function JobPage() {
  const { id = '' } = useParams();
  const job = useQuery(jobQuery(id));
  const followed = useTranscript(job.data === undefined ? null : id);
  const queries = useQueryClient();
  const { attempt, ended } = followed.transcript;
  useEffect(() => {
    // What the stream tells, the record knows more of.
    if (attempt > 0 || ended !== null) void queries.invalidateQueries({ queryKey: ['jobs', id] });
  }, [attempt, ended, id, queries]);

  return (
    <Page
      title={`Job ${id}`}
      heading={
        <Group component="span" gap="xs" wrap="nowrap">
          <Text component="span" inherit style={{ overflowWrap: 'anywhere' }} ff="monospace" fz="lg">
            {id}
          </Text>
          <Copy value={id} label={`Copy ${id}`} />
        </Group>
      }
      parent={{ to: '/jobs', label: 'Jobs' }}
      actions={job.data !== undefined && <Actions job={job.data} />}
    >
      <Answer query={job} loading={<Lines count={5} height={80} />}>
        {(job) => <Body job={job} followed={followed} />}
      </Answer>
    </Page>
  );
}

function Body({ job, followed }: { job: UserJob; followed: Followed }) {
  const { transcript, problem } = followed;
  return (
    <Grid gap="lg">
      <Grid.Col span={{ base: 12, lg: 8 }}>
        <Stack>
          {job.error != null && (
            <Alert color="red" variant="outline" radius="lg" icon={<IconAlertTriangle />} title={job.error.code}>
              <div className="said">{job.error.detail}</div>
              {job.error.retryable && <div>The same job may pass when it is sent again.</div>}
            </Alert>
          )}
          <Paper p="lg">
            <Tabs defaultValue="answer">
              <Tabs.List mb="md">
                <Tabs.Tab value="answer">Answer</Tabs.Tab>
                <Tabs.Tab value="events">Events</Tabs.Tab>
                {job.result?.structured_output !== undefined && <Tabs.Tab value="structured">Structured output</Tabs.Tab>}
              </Tabs.List>
              <Tabs.Panel value="answer">
                <TranscriptView transcript={transcript} job={job} problem={problem} />
              </Tabs.Panel>
              <Tabs.Panel value="events">
                <EventLog transcript={transcript} problem={problem} />
              </Tabs.Panel>
              <Tabs.Panel value="structured">
                <Code block className="said">
                  {JSON.stringify(job.result?.structured_output, null, 2)}
                </Code>
              </Tabs.Panel>
            </Tabs>
          </Paper>
        </Stack>
      </Grid.Col>
      <Grid.Col span={{ base: 12, lg: 4 }}>
        <Stack>
          <Paper p="lg">
            <Group justify="space-between" mb="md">
              <Title order={2} size="h5">
                Stages
              </Title>
              <State is={job.status} />
            </Group>
            <Stages job={job} moments={transcript.moments} />
          </Paper>
          <JobFacts job={job} />
        </Stack>
      </Grid.Col>
    </Grid>
  );
}

function Actions({ job }: { job: UserJob }) {
  const navigate = useNavigate();
  const cancel = useMutation({
    mutationFn: () => cancelJob(job.id),
    onSuccess: () => tellSuccess('The job is being cancelled.'),
    onError: tellProblem,
  });
  const retry = useMutation({
    mutationFn: () => retryDeadLetter(job.id),
    onSuccess: (next) => {
      tellSuccess('Sent again as a new job.');
      void navigate(`/jobs/${next.id}`);
    },
    onError: tellProblem,
  });
  const isAsked = job.cancel_requested_at != null;
  return (
    <>
      {job.session_id != null && (
        <Button variant="default" component={Link} to={`/sessions/${job.session_id}`}>
          Its session
        </Button>
      )}
      {job.dead_letter && job.retried_as === undefined && (
        <Button leftSection={<IconRotateClockwise size={16} />} loading={retry.isPending} onClick={() => retry.mutate()}>
          Try again
        </Button>
      )}
      {!hasEnded(job.status) && (
        <Button
          color="red.8"
          leftSection={<IconPlayerStop size={16} />}
          disabled={isAsked}
          loading={cancel.isPending}
          onClick={() =>
            ask({
              title: 'Cancel this job?',
              children: 'The model stops, and what it said so far is kept. The job cannot be taken up again.',
              confirm: 'Cancel the job',
              act: () => cancel.mutate(),
            })
          }
        >
          {isAsked ? 'Being cancelled' : 'Cancel the job'}
        </Button>
      )}
    </>
  );
}
