import { Paper, Table } from '@mantine/core';
import type { ReactNode } from 'react';

import classes from './DataTable.module.css';

export interface Column<Row> {
  label: string;
  cell: (row: Row) => ReactNode;
  /** Figures stand below each other. */
  isFigure?: boolean;
  /** There is no room for it on a phone. */
  isMinor?: boolean;
  /** Its label is for those who cannot see that it needs none. */
  isAction?: boolean;
}

interface DataTableProps<Row> {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string;
  minWidth?: number;
}

/** A table; on a phone, a card for each of its rows. */
export function DataTable<Row>({ caption, columns, rows, keyOf, minWidth = 640 }: DataTableProps<Row>) {
  return (
    <Paper className={classes.frame}>
      {/* What can be scrolled can be reached by the keyboard. */}
      <div className={classes.scroll} tabIndex={0} role="region" aria-label={caption}>
        <Table highlightOnHover className={classes.table} style={{ '--least': `${minWidth}px` }}>
          <Table.Thead>
            <Table.Tr>
              {columns.map(({ label, isFigure, isAction }) => (
                <Table.Th key={label} ta={isFigure === true ? 'right' : undefined}>
                  {isAction === true ? <span className={classes.hidden}>{label}</span> : label}
                </Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {rows.map((row) => (
              <Table.Tr key={keyOf(row)}>
                {columns.map(({ label, cell, isFigure, isMinor, isAction }) => (
                  <Table.Td
                    key={label}
                    data-minor={isMinor}
                    data-label={isAction === true ? undefined : label}
                    className={isFigure === true ? classes.figure : undefined}
                  >
                    <div className={isAction === true ? classes.actions : classes.cell}>{cell(row)}</div>
                  </Table.Td>
                ))}
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </div>
    </Paper>
  );
}
