import { ActionIcon, Tooltip } from '@mantine/core';
import { IconDownload, IconFileOff } from '@tabler/icons-react';
import { useMutation, useQuery } from '@tanstack/react-query';

import type { Schema } from '../client/client';
import { Ago } from '../parts/Ago';
import { Answer } from '../parts/Answer';
import { type Column, DataTable } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { formatBytes } from '../parts/format';
import { tellProblem } from '../parts/notify';
import { Pager } from '../parts/Pager';
import { useCursor } from '../parts/useCursor';
import { filesQuery, getFile } from './queries';

type File = Schema<'WorkspaceFile'>;

export function Files({ sessionId }: { sessionId: string }) {
  const at = useCursor();
  const files = useQuery(filesQuery(sessionId, at.cursor));
  const columns: Column<File>[] = [
    { label: 'Path', cell: ({ path, target }) => <span style={{ overflowWrap: 'anywhere' }}>{target === undefined ? path : `${path} → ${target}`}</span> },
    { label: 'Kind', cell: ({ kind }) => kind },
    { label: 'Size', isFigure: true, cell: ({ kind, bytes }) => (kind === 'file' ? formatBytes(bytes) : '–') },
    { label: 'Written', cell: ({ modified_at }) => <Ago at={modified_at} /> },
    { label: 'Download', isAction: true, cell: ({ kind, path }) => kind === 'file' && <Download sessionId={sessionId} path={path} /> },
  ];
  return (
    <Answer query={files}>
      {({ data, next_cursor }) =>
        data.length === 0 ? (
          <Empty icon={IconFileOff} title="No files">
            What tools write, and what is put there, stays beside the conversation.
          </Empty>
        ) : (
          <>
            <DataTable caption="Files" columns={columns} rows={data} keyOf={({ path }) => path} minWidth={520} />
            <Pager at={at} next={next_cursor} labels={['Back', 'More']} />
          </>
        )
      }
    </Answer>
  );
}

function Download({ sessionId, path }: { sessionId: string; path: string }) {
  const download = useMutation({ mutationFn: () => getFile(sessionId, path), onSuccess: (blob) => keep(blob, path), onError: tellProblem });
  return (
    <Tooltip label="Download">
      <ActionIcon variant="default" aria-label={`Download ${path}`} loading={download.isPending} onClick={() => download.mutate()}>
        <IconDownload size={16} />
      </ActionIcon>
    </Tooltip>
  );
}

function keep(blob: Blob, path: string): void {
  // Whatever it is, it is never opened here.
  const address = URL.createObjectURL(new Blob([blob], { type: 'application/octet-stream' }));
  const link = document.createElement('a');
  link.href = address;
  link.download = path.split('/').at(-1) ?? path;
  link.click();
  URL.revokeObjectURL(address);
}
