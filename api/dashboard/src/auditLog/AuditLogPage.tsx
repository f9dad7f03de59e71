import { Autocomplete, Group, Text } from '@mantine/core';
import { IconHistory } from '@tabler/icons-react';
import { keepPreviousData, queryOptions, useQuery } from '@tanstack/react-query';

import { answered, client, type Schema } from '../client/client';
import { isRecord } from '../client/problem';
import { Ago } from '../parts/Ago';
import { Answer, Lines } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { shortId } from '../parts/format';
import { Id } from '../parts/Id';
import { Page } from '../parts/Page';
import { Pager } from '../parts/Pager';
import { useCursor } from '../parts/useCursor';
import { useFilters } from '../parts/useFilters';
import { useTyped } from '../parts/useTyped';
import { UserLink } from '../users/UserLink';
import { UserSelect } from '../users/UserSelect';

type AuditEntry = Schema<'AuditEntry'>;

/** The ones this page offers; the server may know more. */
const ACTIONS = [
  'job.cancel',
  'job.retry',
  'key.create',
  'key.revoke',
  'login',
  'login.failed',
  'logout',
  'password.change',
  'session.delete',
  'session.read',
  'token.reused',
  'tool.switch',
  'user.create',
  'user.delete',
  'user.register',
  'user.update',
  'worker.drain',
];

function auditQuery(filter: { actor?: string; action?: string; cursor?: string }) {
  return queryOptions({
    queryKey: ['audit-log', filter],
    queryFn: ({ signal }) => answered(client.GET('/api/admin/audit-log', { params: { query: filter }, signal })),
    placeholderData: keepPreviousData,
  });
}

const COLUMNS: Column<AuditEntry>[] = [
  { label: 'When', cell: ({ at }) => <Ago at={at} /> },
  {
    label: 'What',
    cell: ({ action }) => (
      <Text component="span" size="sm" fw={600} ff="monospace">
        {action}
      </Text>
    ),
  },
  { label: 'Who', cell: ({ actor_id }) => (actor_id == null ? 'the service, or nobody known' : <UserLink id={actor_id} />) },
  { label: 'To whom or what', cell: ({ target }) => <Target id={target} /> },
  { label: 'From where', isMinor: true, cell: ({ address, api_key_id }) => (
    <>
      {address ?? '–'}
      {api_key_id != null && (
        <Text size="xs" c="dimmed">
          by the key <Id id={api_key_id} />
        </Text>
      )}
    </>
  ) },
  { label: 'More', cell: ({ detail }) => <Detail detail={detail} /> },
];

export function AuditLogPage() {
  const [filters, setFilter] = useFilters('actor', 'action');
  const [typed, type] = useTyped(filters.action ?? '', (action) => setFilter('action', action));
  const at = useCursor();
  const entries = useQuery(auditQuery({ ...filters, cursor: at.cursor }));
  const isFiltered = Object.keys(filters).length > 0;
  return (
    <Page title="Audit log" description="Who did what, to whom, when and from where.">
      <Group align="flex-end">
        <UserSelect label="Who" value={filters.actor ?? null} onChange={(id) => setFilter('actor', id)} />
        <Autocomplete
          label="What"
          placeholder="Anything"
          data={ACTIONS}
          value={typed}
          onChange={type}
          maxLength={64}
          clearable
          clearButtonProps={{ 'aria-label': 'Anything' }}
          w={{ base: '100%', xs: 220 }}
        />
      </Group>
      <Answer query={entries} loading={<Lines count={10} height={40} />}>
        {({ data, next_cursor }) =>
          data.length === 0 ? (
            <Empty icon={IconHistory} title={isFiltered ? 'No such entries' : 'Nothing was done yet'}>
              {isFiltered ? 'No entry fits these filters.' : 'Logins, changes of accounts and keys, and what admins do will be here.'}
            </Empty>
          ) : (
            <>
              <DataTable caption="Audit log" columns={COLUMNS} rows={data} keyOf={({ id }) => id} minWidth={900} />
              <Pager at={at} next={next_cursor} />
            </>
          )
        }
      </Answer>
    </Page>
  );
}

/** What changed, in words: a detail is an object of names and values. */
function Detail({ detail }: { detail: unknown }) {
  if (!isRecord(detail)) return <>{detail == null ? '–' : JSON.stringify(detail)}</>;
  return (
    <>
      {Object.entries(detail).map(([name, value]) => (
        <Text key={name} size="sm" style={{ overflowWrap: 'anywhere' }}>
          <Text component="span" size="sm" c="dimmed">
            {name}:
          </Text>{' '}
          {typeof value === 'string' ? shortId(value) : Array.isArray(value) ? value.join(', ') : JSON.stringify(value)}
        </Text>
      ))}
    </>
  );
}

function Target({ id }: { id: string | null | undefined }) {
  if (id == null) return <>–</>;
  if (id.startsWith('user_')) return <UserLink id={id} />;
  return <Id id={id} to={id.startsWith('job_') ? `/jobs/${id}` : id.startsWith('sess_') ? `/sessions/${id}` : undefined} />;
}
