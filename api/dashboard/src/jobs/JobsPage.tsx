import { Box, Group, Pill, Select, TextInput } from '@mantine/core';
import { IconListDetails } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { useNavigate } from 'react-router';

import { Answer, Lines } from '../parts/Answer';
import { Empty } from '../parts/Empty';
import { shortId } from '../parts/format';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { useCursor } from '../parts/useCursor';
import { useFilters } from '../parts/useFilters';
import { UserSelect } from '../users/UserSelect';
import { JobTable } from './JobTable';
import { jobsQuery, STATUSES } from './queries';

export function JobsPage() {
  const [filters, setFilter] = useFilters('status', 'user', 'session');
  const at = useCursor();
  const status = STATUSES.find((status) => status === filters.status);
  const jobs = useQuery(jobsQuery({ status, user_id: filters.user, session_id: filters.session, cursor: at.cursor }));
  const isFiltered = Object.keys(filters).length > 0;
  return (
    <Page title="Jobs" description="Everybody's jobs, the newest first.">
      <Group align="flex-end">
        <Select
          label="Status"
          placeholder="Any"
          data={STATUSES.map((status) => ({ value: status, label: status.slice(0, 1).toUpperCase() + status.slice(1) }))}
          value={status ?? null}
          onChange={(status) => setFilter('status', status)}
          clearable
          clearButtonProps={{ 'aria-label': 'Any status' }}
          w={{ base: '100%', xs: 180 }}
        />
        <UserSelect label="User" value={filters.user ?? null} onChange={(id) => setFilter('user', id)} />
        {filters.session !== undefined && (
          <Pill size="lg" withRemoveButton removeButtonProps={{ 'aria-label': 'All sessions' }} onRemove={() => setFilter('session', null)}>
            Session {shortId(filters.session)}
          </Pill>
        )}
        <JobById />
      </Group>
      <Answer query={jobs} loading={<Lines count={10} height={44} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconListDetails} title={isFiltered ? 'No such jobs' : 'No jobs yet'}>
              {isFiltered ? 'No job fits these filters.' : 'A job is made by each message to the model. The playground is a place to send one.'}
            </Empty>
          ) : (
            <>
              <JobTable jobs={data} />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}

/** For whoever has an id out of a log. */
function JobById() {
  const navigate = useNavigate();
  const [id, setId] = useState('');
  return (
    <Box
      component="form"
      w={{ base: '100%', xs: 220 }}
      onSubmit={(event) => {
        event.preventDefault();
        if (id.trim() !== '') void navigate(`/jobs/${encodeURIComponent(id.trim())}`);
      }}
    >
      <TextInput label="Open by its id" placeholder="job_…" value={id} onChange={({ currentTarget }) => setId(currentTarget.value)} />
    </Box>
  );
}
