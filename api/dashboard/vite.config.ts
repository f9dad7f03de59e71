import { gzipSync } from 'node:zlib';

import react from '@vitejs/plugin-react';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

/** What is large has its packed form beside it, for the server to send as it is. */
function packed(): Plugin {
  return {
    name: 'packed',
    apply: 'build',
    generateBundle: {
      order: 'post',
      handler(_, bundle) {
        for (const [name, file] of Object.entries(bundle)) {
          if (!/\.(js|css)$/.test(name)) continue;
          const source = file.type === 'chunk' ? file.code : file.source;
          this.emitFile({ type: 'asset', fileName: `${name}.gz`, source: gzipSync(source, { level: 9 }) });
        }
      },
    },
  };
}

const api = process.env.API_URL ?? 'http://localhost:3001';

export default defineConfig({
  base: '/admin/',
  plugins: [react(), packed()],
  html: { cspNonce: '__nonce__' },
  build: {
    // The first of each that know `light-dark()`; for others it would be made of variables that Mantine does not set.
    target: ['chrome123', 'firefox120', 'safari17.5'],
    // Inlined files would need `data:` in the policy.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 900,
  },
  server: {
    port: 3030,
    proxy: { '/api': { target: api, ws: true }, '/health': api, '/docs': api, '/openapi.yaml': api },
  },
  test: { include: ['src/**/*.test.ts'] },
});
