/** What admins do, from the first click to what came of it. */
import type { Page, WebSocketRoute } from '@playwright/test';

import { ADMIN, Api, expect, logInAs, PASSWORD, shoot, test, testAsAdmin, unique } from './stage';

const heading = (page: Page, name: string | RegExp) => page.getByRole('heading', { level: 1, name });
const live = (page: Page) => page.getByRole('status').filter({ hasText: 'Live' });

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

testAsAdmin('a session is read and deleted', async ({ page, api }) => {
  const title = unique('To be forgotten');
  const { id } = await api.call<{ id: string }>('POST', '/api/sessions', { title });
  await api.say('say:Bernoulli', { session_id: id });
  await page.goto(`/admin/sessions/${id}`);
  await expect(page.getByRole('article', { name: 'The model' })).toContainText('Bernoulli');

  await page.getByRole('button', { name: 'Delete' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Delete for good' }).click();

  await expect(heading(page, 'Sessions')).toBeVisible();
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
