// A backend plugin: POST /api/rollbackd/daemonsets/{namespace}/{name}/rollback rolls back as the person who is logged in.
//
//   backend.add(import('./plugin'));      // packages/backend/src/index.ts
//
// Who that is comes from Backstage's own credentials; of what the browser sends, only path and body go on.
import { readFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import { coreServices, createBackendPlugin } from '@backstage/backend-plugin-api';
import { parseEntityRef } from '@backstage/catalog-model';
import express from 'express';
import Router from 'express-promise-router';

// How people and groups of the catalog are called in Kubernetes: make it yours.
const userName = (entityRef: string) => `${parseEntityRef(entityRef).name}@example.com`;
const groupNames = (entityRefs: string[]) => {
  const known = new Set(['oncall']); // those that account `backstage` may act for
  const groups = entityRefs.map(ref => parseEntityRef(ref)).filter(ref => ref.kind === 'group');
  return groups.map(ref => ref.name).filter(name => known.has(name));
};

export default createBackendPlugin({
  pluginId: 'rollbackd',
  register(env) {
    env.registerInit({
      deps: {
        config: coreServices.rootConfig,
        httpAuth: coreServices.httpAuth,
        httpRouter: coreServices.httpRouter,
        userInfo: coreServices.userInfo,
      },
      async init({ config, httpAuth, httpRouter, userInfo }) {
        const url = config.getString('rollbackd.url');
        const tokenFile = config.getString('rollbackd.tokenFile');
        const router = Router();
        router.use(express.json({ limit: '16kb' }));
        router.post('/daemonsets/:namespace/:name/rollback', async (request, response) => {
          const credentials = await httpAuth.credentials(request, { allow: ['user'] });
          const person = await userInfo.getUserInfo(credentials);
          const token = (await readFile(tokenFile, 'utf8')).trim();
          const path = [request.params.namespace, request.params.name].map(encodeURIComponent).join('/');
          const target = new URL(`/daemonsets/${path}/rollback`, url);
          const answer = await new Promise<http.IncomingMessage>((resolve, reject) => {
            // Not fetch, which would make one group of several, with commas in its name.
            const sent = (target.protocol === 'https:' ? https : http).request(target, {
              method: 'POST',
              timeout: 60_000,
              headers: {
                Authorization: `Bearer ${token}`,
                'Content-Type': 'application/json',
                'Impersonate-User': userName(person.userEntityRef),
                'Impersonate-Group': groupNames(person.ownershipEntityRefs),
              },
            });
            sent.on('timeout', () => sent.destroy(new Error('rollbackd did not answer in time')));
            sent.on('response', resolve).on('error', reject).end(JSON.stringify(request.body ?? {}));
          });
          response.status(answer.statusCode ?? 502).type(answer.headers['content-type'] ?? 'application/json');
          answer.pipe(response);
        });
        httpRouter.use(router);
      },
    });
  },
});
