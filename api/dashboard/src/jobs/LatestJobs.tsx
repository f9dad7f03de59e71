import { Button, Group, Stack, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { Answer } from '../parts/Answer';
import { JobTable } from './JobTable';
import { jobsQuery } from './queries';

/** The latest jobs of a user or of a session, and the way to all of them. */
export function LatestJobs({ filter }: { filter: { user_id: string } | { session_id: string } }) {
  const jobs = useQuery(jobsQuery({ ...filter, limit: 10 }));
  const all = 'user_id' in filter ? `/jobs?user=${filter.user_id}` : `/jobs?session=${filter.session_id}`;
  return (
    <Answer query={jobs}>
      {({ data }) =>
        data.length === 0 ? (
          <Text c="dimmed">No jobs yet.</Text>
        ) : (
          <Stack>
            <JobTable jobs={data} />
            <Group justify="flex-end">
              <Button variant="default" component={Link} to={all}>
                All of them
              </Button>
            </Group>
          </Stack>
        )
      }
    </Answer>
  );
}
