import { Ago } from '../parts/Ago';
import { type Column, DataTable } from '../parts/DataTable';
import { formatCost, formatMs } from '../parts/format';
import { Id } from '../parts/Id';
import { State } from '../parts/State';
import { UserLink } from '../users/UserLink';
import type { UserJob } from './queries';

const COLUMNS: Column<UserJob>[] = [
  { label: 'Job', cell: ({ id }) => <Id id={id} to={`/jobs/${id}`} /> },
  { label: 'Status', cell: ({ status }) => <State is={status} /> },
  { label: 'User', cell: ({ user_id }) => <UserLink id={user_id} /> },
  { label: 'Model', isMinor: true, cell: ({ model }) => model ?? '–' },
  { label: 'Created', cell: ({ created_at }) => <Ago at={created_at} /> },
  { label: 'Waited', isFigure: true, isMinor: true, cell: ({ timings }) => formatMs(timings.queued_ms) },
  { label: 'Ran', isFigure: true, cell: ({ timings }) => formatMs(timings.run_ms) },
  { label: 'Cost', isFigure: true, cell: ({ cost_usd }) => formatCost(cost_usd) },
];

export function JobTable({ jobs }: { jobs: UserJob[] }) {
  return <DataTable caption="Jobs" columns={COLUMNS} rows={jobs} keyOf={({ id }) => id} minWidth={860} />;
}
