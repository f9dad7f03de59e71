import type { Page } from '@playwright/test';

import { type Api, expect, expectAccessible, PASSWORD, shoot, testAsAdmin, unique } from './stage';

interface Seeded {
  jobId: string;
  failedId: string;
  sessionId: string;
  userId: string;
}

/** Something on every page. */
async function seed(api: Api): Promise<Seeded> {
  const { id: userId } = await api.call<{ id: string }>('POST', '/api/admin/users', {
    email: `${unique('ada')}@example.com`,
    name: 'Ada Lovelace',
    password: PASSWORD,
    daily_budget_usd: 25,
  });
  await api.call('POST', `/api/admin/users/${userId}/api-keys`, { name: 'Nightly reports', scopes: ['chat', 'read'], rate_limit_per_hour: 500 });
  const { id: sessionId } = await api.call<{ id: string }>('POST', '/api/sessions', { title: 'Notes on the engine' });
  const { id: jobId } = await api.say('seq:tool:bash:echo "counted 3" || think:Three were counted, so three it is.', {
    metadata: { ticket: 'OPS-42' },
    tools: ['Bash'],
  });
  await api.say('say:It computes the numbers of Bernoulli.', { session_id: sessionId });
  await api.say('say:As any table would, only faster.', { session_id: sessionId });
  const { id: failedId } = await api.say('cli:exit:3');
  await api.call('POST', `/api/jobs/${(await api.begin('slow:600:1')).id}/cancel`);
  return { jobId, failedId, sessionId, userId };
}

const pages = ({ jobId, failedId, sessionId, userId }: Seeded): [name: string, path: string, heading: string | RegExp][] => [
  ['overview', '/admin', 'Overview'],
  ['jobs', '/admin/jobs', 'Jobs'],
  ['job', `/admin/jobs/${jobId}`, jobId],
  ['job-failed', `/admin/jobs/${failedId}`, failedId],
  ['dead-letters', '/admin/dead-letters', 'Dead letters'],
  ['sessions', '/admin/sessions', 'Sessions'],
  ['session', `/admin/sessions/${sessionId}`, 'Notes on the engine'],
  ['workers', '/admin/workers', 'Workers'],
  ['users', '/admin/users', 'Users'],
  ['user', `/admin/users/${userId}`, 'Ada Lovelace'],
  ['user-keys', `/admin/users/${userId}?tab=keys`, 'Ada Lovelace'],
  ['api-keys', '/admin/api-keys', 'API keys'],
  ['tools', '/admin/tools', 'Tools'],
  ['usage', '/admin/usage', 'Usage'],
  ['audit-log', '/admin/audit-log', 'Audit log'],
  ['playground', '/admin/playground', 'Playground'],
  ['nothing-here', '/admin/no-such-page', 'Nothing here'],
];

/** All that is loaded is there, and the socket is open. */
async function settled(page: Page, heading: string | RegExp): Promise<void> {
  await expect(page.getByRole('heading', { level: 1, name: heading })).toBeVisible();
  await expect(page.locator('[aria-busy="true"]')).toHaveCount(0);
  await expect(page.getByText('Live', { exact: true })).toBeVisible();
}

let seeded: Seeded | undefined;

for (const scheme of ['light', 'dark'] as const) {
  for (const [width, height] of [[1360, 900], [375, 812]] as const) {
    testAsAdmin.describe(`in ${scheme} colours, ${width} wide`, () => {
      testAsAdmin.use({ colorScheme: scheme, viewport: { width, height } });

      testAsAdmin('every page is whole, fits and can be used by everybody', async ({ page, api }) => {
        testAsAdmin.setTimeout(240_000);
        seeded ??= await seed(api);
        for (const [name, path, heading] of pages(seeded)) {
          await page.goto(path);
          await settled(page, heading);
          await expect(page.locator('html')).toHaveAttribute('data-mantine-color-scheme', scheme);
          await expect(page).toHaveTitle(/ · Claude API$/);
          const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
          expect(overflow, `${name} is wider than the screen`).toBe(0);
          await shoot(page, `${name}-${scheme}-${width}`);
          await expectAccessible(page);
        }
      });
    });
  }
}
