/** What the tests stand on: an admin of the running system, pages that may not complain, and data to look at. */
import AxeBuilder from '@axe-core/playwright';
import { type APIRequestContext, expect, type Page, test as base } from '@playwright/test';

export { expect };

export const ADMIN = {
  email: process.env.ADMIN_EMAIL ?? 'admin@example.com',
  password: process.env.ADMIN_PASSWORD ?? '',
};

/** The API, called as the admin. */
export class Api {
  constructor(
    private readonly request: APIRequestContext,
    private readonly token: string,
  ) {}

  static async logIn(request: APIRequestContext, account = ADMIN): Promise<{ api: Api; refreshToken: string; userId: string }> {
    const answer = await request.post('/api/auth/login', { data: account });
    expect(answer.status(), await answer.text()).toBe(200);
    const body = (await answer.json()) as { access_token: string; refresh_token: string; user: { id: string } };
    return { api: new Api(request, body.access_token), refreshToken: body.refresh_token, userId: body.user.id };
  }

  async call<T = Record<string, unknown>>(method: string, path: string, data?: object): Promise<T> {
    const headers = { authorization: `Bearer ${this.token}`, ...(method === 'POST' && path === '/api/chat' ? { prefer: 'wait=30' } : {}) };
    const answer = await this.request.fetch(path, { method, headers, data });
    expect(answer.ok(), `${method} ${path}: ${await answer.text()}`).toBe(true);
    return (answer.status() === 204 ? {} : await answer.json()) as T;
  }
}

interface Fixtures {
  admin: { api: Api; userId: string };
  complaints: string[];
}

export const test = base.extend<Fixtures>({
  /** What the pages wrote to the console as an error. A test that expects some takes them out. */
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
  /** The page is logged in as the admin. */
  admin: async ({ page, request }, provide) => {
    const { api, refreshToken, userId } = await Api.logIn(request);
    await page.addInitScript((token) => {
      // A reload goes on with the token that the page made of this one.
      if (sessionStorage.getItem('begun') !== null) return;
      sessionStorage.setItem('begun', 'yes');
      sessionStorage.setItem('claude-api.refresh-token', token);
    }, refreshToken);
    await provide({ api, userId });
  },
});

/** Nothing in the page keeps anybody from using it, as far as a program can tell (WCAG 2, A and AA). */
export async function expectAccessible(page: Page): Promise<void> {
  // Colours that are still changing are no colours of the page.
  await page.evaluate(() => Promise.all(document.getAnimations().filter(isFinite).map((animation) => animation.finished)).then(() => null));
  const { violations } = await new AxeBuilder({ page }).analyze();
  const grave = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
  const told = grave.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html}\n${failureSummary ?? ''}`).join('\n')}`);
  expect.soft(told, page.url()).toEqual([]);
}

function isFinite(animation: Animation): boolean {
  return animation.effect?.getTiming().iterations !== Infinity;
}

export async function shoot(page: Page, name: string): Promise<void> {
  const folder = process.env.SCREENSHOTS;
  if (folder !== undefined) await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true });
}
