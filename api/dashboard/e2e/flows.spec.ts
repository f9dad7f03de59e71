/** What admins do, from the first click to what came of it. */
import type { Page, Route, WebSocketRoute } from '@playwright/test';

import { ADMIN, Api, expect, logInAs, PASSWORD, shoot, test, testAsAdmin, unique } from './stage';

const heading = (page: Page, name: string | RegExp) => page.getByRole('heading', { level: 1, name });
const busy = (page: Page) => page.locator('[aria-busy="true"]');
const live = (page: Page) => page.getByRole('status').filter({ hasText: 'Live' });

/** What goes no further until it is let go. */
function hold() {
  let letGo = () => undefined as unknown;
  const held = new Promise((resolve) => {
    letGo = () => resolve(null);
  });
  return { held, letGo };
}

/** Lists come in pages of one. */
const byOne = (route: Route) => {
  const url = new URL(route.request().url());
  if (route.request().method() === 'GET') url.searchParams.set('limit', '1');
  return route.continue({ url: url.href });
};

test('an admin logs in, stays in over a reload, and logs out', async ({ page, complaints }) => {
  await page.goto('/admin/workers');
  await expect(page).toHaveTitle('Log in · Claude API');
  await shoot(page, 'login');
  await page.getByLabel('Email').fill(ADMIN.email);
  await page.getByRole('textbox', { name: 'Password' }).fill('not this one');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('alert')).toContainText('Wrong address or password');
  expect(complaints.splice(0)).toEqual([expect.stringContaining('401')]);

  await page.getByRole('textbox', { name: 'Password' }).fill(ADMIN.password);
  await page.keyboard.press('Enter');
  await expect(heading(page, 'Workers')).toBeVisible();
  await page.reload();
  await expect(heading(page, 'Workers')).toBeVisible();
  await expect(live(page)).toBeVisible();
  expect(await page.evaluate(() => [Object.keys(localStorage).filter((key) => key.includes('token')), document.cookie])).toEqual([[], '']);

  await page.getByRole('button', { name: /^Your account/ }).click();
  await page.getByRole('menuitem', { name: 'Log out' }).click();
  await expect(page.getByRole('button', { name: 'Log in' })).toBeVisible();
  expect(await page.evaluate(() => sessionStorage.getItem('claude-api.refresh-token'))).toBeNull();
});

testAsAdmin('a copy of a tab leaves the login to it', async ({ page }) => {
  await page.goto('/admin/workers');
  await expect(heading(page, 'Workers')).toBeVisible();

  const [copy] = await Promise.all([page.waitForEvent('popup'), page.evaluate(() => void window.open('/admin/workers'))]);
  await expect(copy.getByText('The tab that this one is a copy of goes on')).toBeVisible();

  await page.reload();
  await expect(heading(page, 'Workers')).toBeVisible();
});

test('who is no admin is told so, and sees nothing', async ({ page, request, context, root }) => {
  const account = { email: `${unique('reader')}@example.com`, password: PASSWORD };
  await root.call('POST', '/api/admin/users', account);
  const { refreshToken } = await Api.logIn(request, account);
  await logInAs(context, refreshToken);

  await page.goto('/admin/users');

  await expect(heading(page, 'This dashboard is for admins')).toBeVisible();
  await expect(page.getByRole('navigation')).toHaveCount(0);
  await shoot(page, 'not-for-you');
});

testAsAdmin('a key is made, shown once, used and revoked', async ({ page, request }) => {
  const name = unique('Reports');
  await page.goto('/admin/api-keys');
  await page.getByRole('button', { name: 'New key' }).first().click();
  await page.getByLabel('Name').fill(name);
  await page.getByLabel('Requests in an hour').fill('50');
  await shoot(page, 'new-key');
  await page.getByRole('button', { name: 'Create the key' }).click();
  const key = await page.getByTestId('new-key').innerText();
  await shoot(page, 'new-key-shown');
  await page.getByRole('button', { name: 'Copy the key' }).click();
  expect(await page.evaluate(() => navigator.clipboard.readText())).toBe(key);
  await page.getByRole('button', { name: 'Done' }).click();
  await expect(page.getByText(key)).toHaveCount(0);

  const listJobs = () => request.get('/api/jobs', { headers: { 'x-api-key': key } });
  expect((await listJobs()).status()).toBe(200);
  await page.getByRole('button', { name: `Revoke ${name}` }).click();
  await shoot(page, 'confirm');
  await page.getByRole('dialog').getByRole('button', { name: 'Revoke the key' }).click();
  await expect(page.getByRole('row').filter({ hasText: name })).toContainText('Revoked');
  expect((await listJobs()).status()).toBe(401);
});

testAsAdmin('the first key is shown, and stays until whoever made it is done with it', async ({ page }) => {
  const name = unique('First');
  const { held, letGo } = hold();
  await page.route('/api/admin/users/*/api-keys', async (route) => {
    if (route.request().method() === 'POST') await held;
    await route.continue();
  });
  await page.goto('/admin/api-keys');
  await expect(page.getByRole('heading', { name: 'No keys' })).toBeVisible();
  await page.getByRole('button', { name: 'New key' }).last().click();
  await page.getByLabel('Name').fill(name);
  const asked = page.waitForRequest((request) => request.method() === 'POST' && request.url().endsWith('/api-keys'));
  await page.getByRole('button', { name: 'Create the key' }).click();
  await asked;
  await page.keyboard.press('Escape');
  letGo();

  await expect(page.getByTestId('new-key')).toBeVisible();
  // The list has it by now.
  await expect(page.getByRole('row').filter({ hasText: name })).toBeAttached();
  await page.keyboard.press('Escape');
  await expect(page.getByTestId('new-key')).toBeVisible();
  await page.getByRole('button', { name: 'Done' }).click();
  await expect(page.getByRole('dialog')).toHaveCount(0);
});

testAsAdmin('a list goes back where it came from, by the browser as well', async ({ page, api }) => {
  const { id } = await api.call<{ id: string }>('GET', '/api/auth/profile');
  for (const name of ['oldest', 'older', 'newest']) await api.call('POST', `/api/admin/users/${id}/api-keys`, { name, scopes: ['read'] });
  await page.route('/api/admin/users/*/api-keys*', byOne);
  const row = (name: string) => page.getByRole('row').filter({ hasText: name });
  const pages = page.getByRole('navigation', { name: 'Pages of the list' });
  const [newer, older] = [pages.getByRole('button', { name: 'Newer' }), pages.getByRole('button', { name: 'Older' })];
  await page.goto('/admin/api-keys');
  await expect(row('newest')).toBeVisible();
  await expect(newer).toBeDisabled();
  await older.click();
  await expect(row('older')).toBeVisible();
  await older.click();
  await expect(row('oldest')).toBeVisible();
  await expect(older).toBeDisabled();

  await page.goBack();
  await expect(row('older')).toBeVisible();
  await newer.click();
  await expect(row('newest')).toBeVisible();
  await expect(newer).toBeDisabled();

  await older.click();
  await expect(row('older')).toBeVisible();
  await older.click();
  await expect(row('oldest')).toBeVisible();
  await page.reload();
  await newer.click();
  await expect(row('older')).toBeVisible();
});

testAsAdmin('what a former filter left is dim until the answer is there', async ({ page, api }) => {
  await api.say('say:to be listed');
  await page.goto('/admin/jobs');
  await expect(page.getByRole('table')).toBeVisible();
  const { held, letGo } = hold();
  await page.route(/\/api\/admin\/jobs\?.*status=queued/, async (route) => {
    await held;
    await route.continue();
  });

  await page.getByRole('combobox', { name: 'Status' }).click();
  await page.getByRole('option', { name: 'Queued' }).click();

  await expect(busy(page).getByRole('table')).toBeVisible();
  letGo();
  await expect(busy(page)).toHaveCount(0);
});

testAsAdmin('a message is sent in the playground, its answer streams, and its job is in the list', async ({ page }) => {
  await page.goto('/admin/playground');
  await expect(live(page)).toBeVisible();
  await page.getByRole('textbox', { name: 'Message' }).fill('slow:12:0.25');
  await page.keyboard.press('Enter');

  const turn = page.getByRole('region', { name: 'A message and its answer' });
  const answer = turn.locator('[data-growing]');
  await expect(answer).toContainText(/\w+/);
  const first = await answer.innerText();
  await expect(turn.getByRole('button', { name: 'Stop' })).toBeVisible();
  await expect(answer).not.toHaveText(first);
  await shoot(page, 'playground-streaming');
  await expect(turn.getByText('Completed')).toBeVisible();
  await expect(turn).toContainText(/\$\d.*tokens written.*first text after.*ran/);

  await turn.getByRole('link', { name: 'job' }).click();
  await expect(heading(page, /job_/)).toBeVisible();
  const id = new URL(page.url()).pathname.split('/').at(-1) ?? '';
  await page.getByRole('link', { name: 'Jobs', exact: true }).first().click();
  await expect(page.getByRole('link', { name: `job_…${id.slice(-8)}` })).toBeVisible();

  // What was said is there still.
  await page.getByRole('link', { name: 'Playground' }).click();
  await expect(turn.getByText('tick 11')).toBeVisible();
  await page.getByRole('button', { name: 'Clear' }).click();
  await expect(page.getByText('Say something')).toBeVisible();
});

testAsAdmin('a session of the playground knows what was said before', async ({ page }) => {
  await page.goto('/admin/playground');
  await page.getByRole('button', { name: 'New session' }).click();
  await expect(page.getByRole('combobox', { name: 'Session' })).toHaveValue(/Playground/);
  const turns = page.getByRole('region', { name: 'A message and its answer' });
  for (const [message, place] of [['say:one', 0], ['recall:two', 1]] as const) {
    await page.getByRole('textbox', { name: 'Message' }).fill(message);
    await page.getByRole('button', { name: 'Send' }).click();
    await expect(turns.nth(place).getByText('Completed')).toBeVisible();
  }

  await expect(turns.nth(1).locator('.said').last()).toHaveText('one | two');
});

testAsAdmin('what a model says is never taken for HTML', async ({ page }) => {
  await page.goto('/admin/playground');
  await page.getByRole('textbox', { name: 'Message' }).fill('say:<img src=x onerror="document.title=1"><b>bold</b>');
  await page.keyboard.press('Enter');

  const turn = page.getByRole('region', { name: 'A message and its answer' });
  await expect(turn.getByText('Completed')).toBeVisible();
  await expect(turn.locator('.said').last()).toHaveText('<img src=x onerror="document.title=1"><b>bold</b>');
  await expect(turn.locator('img, b')).toHaveCount(0);
});

testAsAdmin('a running job of another user is watched and cancelled', async ({ page, api, request }) => {
  const account = { email: `${unique('writer')}@example.com`, password: PASSWORD };
  await api.call('POST', '/api/admin/users', account);
  const other = await Api.logIn(request, account);
  const { id } = await other.api.begin('slow:600:0.2');

  await page.goto(`/admin/jobs/${id}`);
  const answer = page.locator('[data-growing]');
  await expect(answer).toContainText(/\w+/);
  await expect(page.getByText('Running')).toBeVisible();
  await page.getByRole('tab', { name: 'Events' }).click();
  await expect(page.getByRole('region', { name: 'Events' })).toContainText('text.delta');
  await shoot(page, 'job-events');
  await page.getByRole('button', { name: 'Cancel the job' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Cancel the job' }).click();

  await expect(page.getByText('Cancelled').first()).toBeVisible();
  await expect(page.getByRole('button', { name: 'Cancel the job' })).toHaveCount(0);
});

testAsAdmin('a connection that is lost is made anew, and the answer goes on without a hole', async ({ page }) => {
  const sockets: WebSocketRoute[] = [];
  const subscriptions: string[] = [];
  await page.routeWebSocket(/\/api\/ws$/, (socket) => {
    sockets.push(socket);
    const server = socket.connectToServer();
    socket.onMessage((message) => {
      if (String(message).includes('"subscribe"')) subscriptions.push(String(message));
      server.send(message);
    });
  });
  await page.goto('/admin/playground');
  await expect(live(page)).toBeVisible();
  await page.getByRole('textbox', { name: 'Message' }).fill('slow:25:0.2');
  await page.keyboard.press('Enter');
  const turn = page.getByRole('region', { name: 'A message and its answer' });
  await expect(turn.locator('[data-growing]')).toContainText(/\w+/);

  await sockets[0]?.close({ code: 4000 });
  await expect(page.getByRole('status').filter({ hasText: 'Reconnecting' })).toBeVisible();
  await expect(live(page)).toBeVisible();
  await expect(turn.getByText('Completed')).toBeVisible();

  expect(sockets.length).toBe(2);
  expect(subscriptions.map((message) => (JSON.parse(message) as { after?: string }).after)).toEqual([undefined, expect.stringMatching(/^1-\d+$/)]);
  const said = await turn.locator('.said').last().innerText();
  await turn.getByRole('link', { name: 'job' }).click();
  // What the record has is whole.
  await expect(page.getByRole('tabpanel', { name: 'Answer' }).locator('.said').last()).toHaveText(said);
});

testAsAdmin('an answer that cannot be followed at once is followed later', async ({ page }) => {
  let refusals = 0;
  await page.routeWebSocket(/\/api\/ws$/, (socket) => {
    const server = socket.connectToServer();
    socket.onMessage((message) => {
      const { type, request_id } = JSON.parse(String(message)) as { type: string; request_id?: string };
      if (type !== 'subscribe' || refusals > 0) {
        server.send(message);
        return;
      }
      refusals += 1;
      socket.send(JSON.stringify({ type: 'error', request_id, code: 'unavailable', detail: 'the database is away', retry_after_secs: 3 }));
    });
  });
  await page.goto('/admin/playground');
  await page.getByRole('textbox', { name: 'Message' }).fill('say:Late, but here');
  await page.keyboard.press('Enter');

  const turn = page.getByRole('region', { name: 'A message and its answer' });
  await expect(turn.getByRole('alert')).toContainText('the database is away');
  await expect(turn.getByRole('button', { name: 'Stop' })).toBeVisible();
  await expect(turn.getByText('Completed')).toBeVisible();
  await expect(turn.locator('.said').last()).toHaveText('Late, but here');
  await expect(turn.getByRole('alert')).toHaveCount(0);
});

testAsAdmin('a job that was given up is tried again', async ({ page, api }) => {
  const { id } = await api.say('cli:exit:3');
  await page.goto('/admin/dead-letters');

  await page.getByRole('button', { name: `Try ${id} again` }).click();

  await expect(page.getByRole('alert').filter({ hasText: 'Sent again as' })).toBeVisible();
  await expect(page.getByRole('row').filter({ hasText: id.slice(-8) }).getByRole('link', { name: 'Tried again' })).toBeVisible();
  await page.getByRole('row').filter({ hasText: id.slice(-8) }).getByRole('link', { name: 'Tried again' }).click();
  await expect(page.getByText('Tries again', { exact: true })).toBeVisible();
});

testAsAdmin('a user is made, changed, disabled, enabled and deleted', async ({ page }) => {
  const email = `${unique('grace')}@example.com`;
  await page.goto('/admin/users');
  await page.getByRole('button', { name: 'New user' }).click();
  await page.getByLabel('Email').fill(email);
  await page.getByLabel('Name').fill('Grace Hopper');
  await page.getByRole('textbox', { name: 'Password' }).fill(PASSWORD);
  await shoot(page, 'new-user');
  await page.getByRole('button', { name: 'Create the user' }).click();
  await expect(heading(page, 'Grace Hopper')).toBeVisible();

  await page.getByLabel('Budget of a day').fill('12.5');
  await page.getByRole('button', { name: 'Save' }).click();
  await expect(page.getByText('The account is changed.')).toBeVisible();
  await page.reload();
  await expect(page.getByLabel('Budget of a day')).toHaveValue('$12.5');

  await page.getByRole('button', { name: 'Disable' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Disable' }).click();
  await expect(page.getByText('Disabled', { exact: true })).toBeVisible();
  await page.getByRole('button', { name: 'Enable' }).click();
  await expect(page.getByText('Disabled', { exact: true })).toHaveCount(0);

  await page.getByRole('button', { name: 'Delete' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Delete for good' }).click();
  await expect(heading(page, 'Users')).toBeVisible();
  await page.getByLabel('Search the users').fill(email);
  await expect(page.getByText('Nobody found')).toBeVisible();
});

testAsAdmin('a change of an account is what was typed, and asks before it changes a role', async ({ page, api }) => {
  const account = { email: `${unique('mary')}@example.com`, password: PASSWORD };
  const { id } = await api.call<{ id: string }>('POST', '/api/admin/users', account);
  const saved = () => api.call('GET', `/api/admin/users/${id}`);
  await page.goto(`/admin/users/${id}`);
  await page.getByLabel('Budget of a day').fill('7.5');

  // What else happens to the account takes nothing away, and what another admin changes is not changed back.
  await page.getByRole('button', { name: 'Disable' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Disable' }).click();
  await expect(page.getByText('Disabled', { exact: true })).toBeVisible();
  await expect(page.getByLabel('Budget of a day')).toHaveValue('$7.5');
  await api.call('PATCH', `/api/admin/users/${id}`, { name: 'Mary Somerville' });
  await page.getByRole('button', { name: 'Save' }).click();
  await expect(heading(page, 'Mary Somerville')).toBeVisible();
  expect(await saved()).toMatchObject({ name: 'Mary Somerville', daily_budget_usd: 7.5 });

  await page.getByRole('radiogroup', { name: 'Role' }).getByText('Admin').click();
  await page.getByRole('button', { name: 'Save' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Make an admin' }).click();
  await expect.poll(async () => (await saved()).role).toBe('admin');
});

testAsAdmin('a filter finds users beyond the newest, and calls them by their address', async ({ page, api, request }) => {
  const account = { email: `${unique('old')}@example.com`, password: PASSWORD };
  const { id } = await api.call<{ id: string }>('POST', '/api/admin/users', account);
  const job = await (await Api.logIn(request, account)).api.say('say:of an old user');
  await api.call('POST', '/api/admin/users', { ...account, email: `${unique('new')}@example.com` });
  await page.route('/api/admin/users?*limit=100*', byOne);

  await page.goto(`/admin/jobs?user=${id}`);
  const filter = page.getByRole('combobox', { name: 'User' });
  await expect(filter).toHaveValue(account.email);
  await expect(page.getByRole('link', { name: account.email })).toBeVisible();

  await page.getByLabel('Everybody').click();
  await expect(page.getByLabel('Everybody')).toHaveCount(0);
  await expect(page).not.toHaveURL(/user=/);
  await filter.fill(account.email);
  await page.getByRole('option', { name: account.email }).click();
  await expect(page).toHaveURL(new RegExp(`user=${id}`));

  await page.getByLabel('Open by its id').fill(job.id);
  await page.keyboard.press('Enter');
  await expect(heading(page, job.id)).toBeVisible();
});

testAsAdmin('what is typed into a search stays as it was typed', async ({ page }) => {
  await page.goto('/admin/users');
  const search = page.getByLabel('Search the users');
  await search.pressSequentially('ae');
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.type('bcd');

  await expect(search).toHaveValue('abcde');
  await expect(page).toHaveURL(/query=abcde/);
  await page.getByRole('link', { name: 'Users', exact: true }).click();
  await expect(search).toHaveValue('');
});

testAsAdmin('a day that is none is not taken from the address', async ({ page }) => {
  await page.goto('/admin/usage?from=2026-02-31&to=x');

  await expect(heading(page, 'Usage')).toBeVisible();
  await expect(page.getByLabel('To', { exact: true })).toHaveValue(/^\d{4}-\d{2}-\d{2}$/);
  await expect(busy(page)).toHaveCount(0);
  await expect(page.getByRole('alert')).toHaveCount(0);
});

testAsAdmin('each list of a session has its own place, and the tab is in the address', async ({ page, api }) => {
  const { id } = await api.call<{ id: string }>('POST', '/api/sessions', { title: unique('Two lists') });
  for (const text of ['First', 'Second']) await api.say(`say:${text}`, { session_id: id });
  await page.route('/api/admin/sessions/*/messages*', byOne);
  await page.goto(`/admin/sessions/${id}`);
  await page.getByRole('button', { name: 'Earlier' }).click();
  await expect(page.getByRole('article', { name: 'The model' })).toContainText('First');
  await expect(page).toHaveURL(/cursor=/);

  await page.getByRole('tab', { name: 'Files' }).click();

  await expect(page).toHaveURL(/\?tab=files$/);
  await expect(page.getByText('No files')).toBeVisible();
  await page.reload();
  await expect(page.getByText('No files')).toBeVisible();
});

testAsAdmin('what was said in a session is asked for once, however often one comes back to the window', async ({ page, api }) => {
  const { id } = await api.call<{ id: string }>('POST', '/api/sessions', { title: unique('Read once') });
  await api.say('say:Said', { session_id: id });
  const asked: string[] = [];
  page.on('request', (request) => asked.push(new URL(request.url()).pathname));
  await page.goto(`/admin/sessions/${id}`);
  await expect(page.getByRole('article', { name: 'The model' })).toBeVisible();

  // So late that every other answer is too old.
  await page.clock.setSystemTime(Date.now() + 10_000);
  const again = page.waitForResponse((response) => response.url().endsWith(`/api/admin/sessions/${id}`));
  await page.evaluate(() => window.dispatchEvent(new Event('visibilitychange')));
  await again;

  expect(asked.filter((path) => path.endsWith('/messages'))).toHaveLength(1);
});

testAsAdmin('a session is read and deleted', async ({ page, api }) => {
  const title = unique('To be forgotten');
  const { id } = await api.call<{ id: string }>('POST', '/api/sessions', { title });
  await api.say('say:Bernoulli', { session_id: id });
  await page.goto(`/admin/sessions/${id}`);
  await expect(page.getByRole('article', { name: 'The model' })).toContainText('Bernoulli');

  await page.getByRole('button', { name: 'Delete' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Delete for good' }).click();

  await expect(heading(page, 'Sessions')).toBeVisible();
  await expect(busy(page)).toHaveCount(0);
  await expect(page.getByText(title)).toHaveCount(0);
});

testAsAdmin('a tool is switched off and on', async ({ page, api }) => {
  await page.goto('/admin/tools?name=WebSearch');
  const toggle = page.getByRole('switch', { name: 'Jobs may use WebSearch' });
  const isOn = async () => (await api.call<{ enabled: boolean }>('GET', '/api/admin/tools/WebSearch')).enabled;

  await toggle.click();
  await expect(page.getByText('WebSearch is off.')).toBeVisible();
  expect(await isOn()).toBe(false);
  await toggle.click();
  await expect(page.getByText('WebSearch is on.')).toBeVisible();
  expect(await isOn()).toBe(true);
});

testAsAdmin('what is not there says so, with the request to look for in the log', async ({ page, complaints }) => {
  await page.goto('/admin/jobs/job_00000000000000000000000000000000');

  const alert = page.getByRole('alert');
  await expect(alert).toContainText('Not found');
  await expect(alert).toContainText(/Request [0-9a-f]{32}/);
  expect(complaints.splice(0)).toEqual([expect.stringContaining('404')]);
});

testAsAdmin('a list that cannot be had says why, and is there once it can', async ({ page, complaints }) => {
  const problem = { type: 'about:blank', title: 'Service Unavailable', status: 503, detail: 'the database is away', code: 'unavailable', request_id: 'r-1' };
  await page.route('/api/admin/workers*', (route) => route.fulfill({ status: 503, contentType: 'application/problem+json', json: problem }));
  await page.goto('/admin/workers');

  const alert = page.getByRole('alert');
  await expect(alert).toContainText('the database is away');
  await expect(alert).toContainText('Request r-1');
  await shoot(page, 'failure');
  await page.unroute('/api/admin/workers*');
  await alert.getByRole('button', { name: 'Try again' }).click();

  await expect(page.getByRole('table')).toBeVisible();
  expect(complaints.splice(0).every((complaint) => complaint.includes('503'))).toBe(true);
});

testAsAdmin('what is shown of before an outage says so', async ({ page, complaints }) => {
  const problem = { type: 'about:blank', title: 'Service Unavailable', status: 503, detail: 'the database is away', code: 'unavailable', request_id: 'r-2' };
  await page.goto('/admin/workers');
  await expect(page.getByRole('table')).toBeVisible();
  await page.route('/api/admin/workers*', (route) => route.fulfill({ status: 503, contentType: 'application/problem+json', json: problem }));

  const alert = page.getByRole('alert');
  await expect(alert).toContainText(/the database is away.*What you see is from .* ago/);
  await expect(page.getByRole('table')).toBeVisible();
  await shoot(page, 'outdated');
  await page.unroute('/api/admin/workers*');
  await alert.getByRole('button', { name: 'Try again' }).click();

  await expect(alert).toHaveCount(0);
  expect(complaints.splice(0).every((complaint) => complaint.includes('503'))).toBe(true);
});

testAsAdmin('all of it can be done by the keyboard', async ({ page }) => {
  await page.goto('/admin');
  await expect(heading(page, 'Overview')).toBeVisible();
  await page.keyboard.press('Tab');
  await expect(page.getByRole('link', { name: 'Skip to the content' })).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.locator('#main')).toBeFocused();

  await page.getByRole('link', { name: 'Jobs', exact: true }).focus();
  await page.keyboard.press('Enter');
  await expect(heading(page, 'Jobs')).toBeVisible();
  await expect(page.locator('#main')).toBeFocused();
  await expect(page.getByRole('link', { name: 'Jobs', exact: true })).toHaveAttribute('aria-current', 'page');
  await page.keyboard.press('Tab');
  await expect(page.getByRole('combobox', { name: 'Status' })).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('listbox')).toBeVisible();
  await page.keyboard.press('ArrowDown');
  await expect(page.locator('[data-combobox-selected]')).toHaveCount(1);
  await page.keyboard.press('Enter');
  await expect(page).toHaveURL(/status=/);

  await page.goto('/admin/api-keys');
  await page.getByRole('button', { name: 'New key' }).first().focus();
  await page.keyboard.press('Enter');
  await expect(page.getByLabel('Name')).toBeFocused();
  await page.keyboard.press('Escape');
  await expect(page.getByRole('dialog')).toHaveCount(0);
  await expect(page.getByRole('button', { name: 'New key' }).first()).toBeFocused();
});

testAsAdmin('the colours that were chosen stay', async ({ page }) => {
  await page.goto('/admin');
  await page.getByRole('button', { name: 'Use the dark colours' }).click();
  await expect(page.locator('html')).toHaveAttribute('data-mantine-color-scheme', 'dark');
  await page.reload();
  await expect(page.getByRole('button', { name: 'Use the light colours' })).toBeVisible();
});

testAsAdmin.describe('on a phone', () => {
  testAsAdmin.use({ viewport: { width: 375, height: 812 } });

  testAsAdmin('the navigation opens, leads somewhere and closes', async ({ page }) => {
      await page.goto('/admin');
    await page.getByRole('button', { name: 'Open the navigation' }).click();
    await expect(page.getByRole('link', { name: 'Audit log' })).toBeInViewport();
    await shoot(page, 'navigation-375');
    await page.getByRole('link', { name: 'Audit log' }).click();

    await expect(heading(page, 'Audit log')).toBeVisible();
    await expect(page.getByRole('link', { name: 'Audit log' })).not.toBeInViewport();
  });
});

testAsAdmin('a worker is drained', async ({ page }) => {
  await page.goto('/admin/workers');
  const worker = page.getByRole('row').filter({ hasText: 'to be drained' });
  await worker.getByRole('button', { name: 'Drain' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Drain it' }).click();

  // It has nothing to do: draining is over in a moment, and so is the worker.
  await expect(worker).toContainText(/Draining|Dead/);
  await expect(worker.getByRole('button', { name: 'Drain' })).toHaveCount(0);
});
