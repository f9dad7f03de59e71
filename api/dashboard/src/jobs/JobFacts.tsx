import { Anchor, Paper, Stack, Title } from '@mantine/core';
import { Link } from 'react-router';

import { Ago } from '../parts/Ago';
import { Facts } from '../parts/Facts';
import { formatCost, formatCount, formatMs, shortId } from '../parts/format';
import { Id } from '../parts/Id';
import { UserLink } from '../users/UserLink';
import type { UserJob } from './queries';

export function JobFacts({ job }: { job: UserJob }) {
  const { usage, timings, result, queue } = job;
  const words = Object.entries(job.metadata as Record<string, unknown>);
  return (
    <>
      <Paper p="lg">
        <Title order={2} size="h5" mb="md">
          Job
        </Title>
        <Facts
          facts={[
            ['User', <UserLink key="user" id={job.user_id} />],
            ['Model', job.model ?? '–'],
            ['Created', <Ago key="created" at={job.created_at} />],
            ['Attempts', formatCount(job.attempt)],
            queue !== undefined && [
              'Place in the queue',
              `${formatCount(queue.position + 1)}${queue.estimated_wait_ms == null ? '' : `, about ${formatMs(queue.estimated_wait_ms)}`}`,
            ],
            job.worker_id != null && ['Worker', <Id key="worker" id={job.worker_id} />],
            job.api_key_id != null && ['API key', <Id key="key" id={job.api_key_id} />],
            job.retry_of !== undefined && ['Tries again', <JobLink key="of" id={job.retry_of} />],
            job.retried_as !== undefined && ['Tried again as', <JobLink key="as" id={job.retried_as} />],
            result != null && ['Model calls', formatCount(result.num_turns)],
            result?.stop_reason != null && ['Stopped because', result.stop_reason],
          ]}
        />
      </Paper>
      <Paper p="lg">
        <Title order={2} size="h5" mb="md">
          Cost and time
        </Title>
        <Facts
          facts={[
            ['Cost', formatCost(job.cost_usd)],
            usage != null && ['Tokens read', formatCount(usage.input_tokens)],
            usage != null && ['Tokens written', formatCount(usage.output_tokens)],
            usage != null && ['Read from the cache', formatCount(usage.cache_read_tokens)],
            usage != null && ['Written to the cache', formatCount(usage.cache_write_tokens)],
            ['Waited', formatMs(timings.queued_ms)],
            ['Until the CLI was ready', formatMs(timings.start_ms)],
            ['Until the first text', formatMs(timings.first_token_ms)],
            ['Ran', formatMs(timings.run_ms)],
          ]}
        />
      </Paper>
      {words.length > 0 && (
        <Paper p="lg">
          <Stack gap="md">
            <Title order={2} size="h5">
              Metadata
            </Title>
            <Facts facts={words.map(([key, value]) => [key, String(value)])} />
          </Stack>
        </Paper>
      )}
    </>
  );
}

function JobLink({ id }: { id: string }) {
  return (
    <Anchor component={Link} to={`/jobs/${id}`} size="sm" ff="monospace">
      {shortId(id)}
    </Anchor>
  );
}
