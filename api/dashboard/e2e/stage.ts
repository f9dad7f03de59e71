/** What the tests stand on: an admin of the running system, pages that may not complain, and data to look at. */
import AxeBuilder from '@axe-core/playwright';
import { type APIRequestContext, type BrowserContext, expect, type Page, test as base } from '@playwright/test';

export { expect };

export const ADMIN = {
  email: process.env.ADMIN_EMAIL ?? 'admin@example.com',
  password: process.env.ADMIN_PASSWORD ?? '',
};

export const PASSWORD = 'correct horse battery staple';

/** A name that no other test has, nor one that was run here before. */
export function unique(name: string): string {
  return `${name}-${Date.now().toString(36)}`;
}

/** The API, called as somebody. */
export class Api {
  constructor(
    private readonly request: APIRequestContext,
    private readonly token: string,
  ) {}

  static async logIn(request: APIRequestContext, account: typeof ADMIN): Promise<{ api: Api; refreshToken: string }> {
    const answer = await request.post('/api/auth/login', { data: account });
    expect(answer.status(), await answer.text()).toBe(200);
    const body = (await answer.json()) as { access_token: string; refresh_token: string };
    return { api: new Api(request, body.access_token), refreshToken: body.refresh_token };
  }

  async call<T = Record<string, unknown>>(method: string, path: string, data?: object): Promise<T> {
    const headers = { authorization: `Bearer ${this.token}` };
    const answer = await this.request.fetch(path, { method, headers, data });
    expect(answer.ok(), `${method} ${path}: ${await answer.text()}`).toBe(true);
    return (answer.status() === 204 ? {} : await answer.json()) as T;
  }

  /** Send a message, and do not wait for its answer. */
  begin(message: string, more: object = {}): Promise<{ id: string }> {
    return this.call('POST', '/api/chat', { message, ...more });
  }

  /** Send a message, and wait until its job has ended. */
  async say(message: string, more: object = {}): Promise<{ id: string }> {
    const { id } = await this.begin(message, more);
    const isOver = async () => (await this.call<{ finished_at: string | null }>('GET', `/api/jobs/${id}?wait=30`)).finished_at;
    await expect.poll(isOver).not.toBeNull();
    return { id };
  }
}

/** What a page wrote to the console as an error fails its test. One that expects some takes them out. */
export const test = base.extend<{ complaints: string[] }, { root: Api }>({
  /** The API, called as the first admin. */
  root: [
    async ({ playwright }, provide) => {
      const request = await playwright.request.newContext({ baseURL: process.env.API_URL });
      await provide((await Api.logIn(request, ADMIN)).api);
      await request.dispose();
    },
    { scope: 'worker' },
  ],
  complaints: [
    async ({ page }, provide) => {
      const complaints: string[] = [];
      page.on('console', (message) => {
        if (message.type() === 'error') complaints.push(message.text());
      });
      page.on('pageerror', (error) => complaints.push(error.message));
      await provide(complaints);
      expect(complaints).toEqual([]);
    },
    { auto: true },
  ],
});

/** The same, logged in as an admin of its own: an account takes ten logins in a minute. */
export const testAsAdmin = test.extend<{ api: Api }>({
  api: [
    async ({ context, request, root }, provide) => {
      const account = { email: `${unique('admin')}@example.com`, password: PASSWORD };
      await root.call('POST', '/api/admin/users', { ...account, role: 'admin' });
      const { api, refreshToken } = await Api.logIn(request, account);
      await logInAs(context, refreshToken);
      await provide(api);
    },
    { auto: true },
  ],
});

/** The next pages of `context` begin with this login. */
export async function logInAs(context: BrowserContext, refreshToken: string): Promise<void> {
  await context.addInitScript((token) => {
    // A reload goes on with the token that the page made of this one.
    if (sessionStorage.getItem('begun') === token) return;
    sessionStorage.setItem('begun', token);
    sessionStorage.setItem('claude-api.refresh-token', token);
  }, refreshToken);
}

/** Nothing in the page keeps anybody from using it, as far as a program can tell (WCAG 2, A and AA). */
export async function expectAccessible(page: Page): Promise<void> {
  await settled(page);
  const { violations } = await new AxeBuilder({ page }).analyze();
  const grave = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  const told = grave.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html}\n${failureSummary ?? ''}`).join('\n')}`);
  expect.soft(told, page.url()).toEqual([]);
}

/** What is still moving or changing its colour is not yet the page. */
async function settled(page: Page): Promise<void> {
  await page.evaluate(async () => {
    const ends = document.getAnimations().filter((animation) => animation.effect?.getTiming().iterations !== Infinity);
    // One that is replaced never ends.
    await Promise.allSettled(ends.map((animation) => animation.finished));
  });
}

export async function shoot(page: Page, name: string): Promise<void> {
  const folder = process.env.SCREENSHOTS;
  if (folder === undefined) return;
  await settled(page);
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}
