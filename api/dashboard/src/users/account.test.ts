import { expect, it } from 'vitest';

import { changesOf } from './account';

it('a change is what differs, and what was taken away', () => {
  const before = { email: 'ada@example.com', name: 'Ada', daily_budget_usd: 5 as number | null, queue_weight: null };

  expect(changesOf(before, { ...before })).toEqual({});
  expect(changesOf(before, { ...before, name: 'Ada Lovelace', daily_budget_usd: null })).toEqual({ name: 'Ada Lovelace', daily_budget_usd: null });
});
